"""`find_lr`: the learning-rate finder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstlight.errors import InputError
from firstlight.jobs.job import Job
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.training.lr_finder import LRFinding


def find_lr(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    **settings: Any,
) -> LRFinding:
    """Run the recipe's learning-rate finder, and write nothing."""
    recipe = resolve(recipe, data_dir=data_dir, epochs=epochs, seed=seed, **settings)
    if recipe.head is not None:
        raise InputError(f"{recipe.name} has no learning rate to find", "Its head is fitted, not trained.")
    return Job.prepare(recipe, None if data_dir is None else Path(data_dir), device, precision).find_rates()
