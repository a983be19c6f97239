"""How we show it: figures from results, a page from a run folder, lines for a terminal."""
