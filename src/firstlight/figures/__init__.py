"""How we draw it: figures from plain results, each in the house style."""
