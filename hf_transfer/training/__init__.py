"""How it learns: the loop."""
