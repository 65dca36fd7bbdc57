"""How a model is published: its card, and its repository and Space on the Hub."""
