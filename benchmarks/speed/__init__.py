"""How fast a model answers on this machine: scenarios, other ways to compute the same answers, and the machine's state."""
