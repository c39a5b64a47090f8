"""Parity and speed, measured side by side; each figure names the machine and the versions."""
