"""What is measured, chosen and published; each script is a module, and its rows lie beside it.

speed/     MEASURED   how fast training, the input pipeline and the page are
insight/   MEASURED   how good Grad-CAM and the ranking of label errors are
recipes/   CHOSEN     what a recipe gains from a change, on images held out of training
publish/   PUBLISHED  a run's row and evidence; the tables in README and docs; the picture of time
runs/      KEPT       the evidence of published runs, and their rows in runs.csv

Run one from the root of the repository: `python -m benchmarks.speed.reference`, or, in an environment that
has the packages compared with, `make bench SCRIPT=benchmarks/speed/reference.py`.
"""
