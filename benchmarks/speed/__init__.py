"""How fast training, the input pipeline and the page are."""
