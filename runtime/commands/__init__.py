"""One module for each command of ``fundus-rt``; heavy imports stand inside the functions."""
