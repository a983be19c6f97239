"""How we show it: a run folder as one HTML file."""
