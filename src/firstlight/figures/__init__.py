"""How we draw it: figures from plain results."""
