"""The original on its author's way against the shipped file on ours: differences, where they arise, what they change."""
