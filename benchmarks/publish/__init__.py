"""Rows and evidence of runs, and what is written and drawn from them."""
