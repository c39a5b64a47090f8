"""How answers and parity move when photographs get worse."""
