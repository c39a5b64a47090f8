"""Which precision a file may have: calibration on photographs, what really ran, what it costs, and the search within the budget."""
