"""How it ships: the model card, and what goes to the Hub."""
