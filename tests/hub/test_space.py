"""The Space of a finished run: what is in its folder, how it gets to the Hub, and the commands."""
