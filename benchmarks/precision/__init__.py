"""Which precision a file may have: calibration, what really ran, what it costs, and the search within the budget."""
