"""What was chosen: functions that return a frozen `Recipe`."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.errors import InputError, nearest
from firstlight.recipe import Recipe
from firstlight.recipes import cifar10, shapes

RECIPES: dict[str, Callable[[], Recipe]] = {
    "cifar10.assignment": cifar10.assignment,
    "cifar10.assignment_plus": cifar10.assignment_plus,
    "cifar10.fast": cifar10.fast,
    "shapes.demo": shapes.demo,
}


def named(name: str) -> Recipe:
    """Return the recipe of that name."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}", nearest(name, list(RECIPES)))
    return RECIPES[name]()


def table() -> dict[str, str]:
    """Return the names of all recipes, each with the first line of its docstring."""
    return {name: (recipe.__doc__ or "").strip().splitlines()[0] for name, recipe in RECIPES.items()}
