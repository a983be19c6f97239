"""What was chosen: functions that return a frozen `Recipe`.

The room is a verb as well: `firstlight.recipes()` lists them, `firstlight.recipes(NAME)` returns one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

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


def purpose(name: str) -> str:
    """Return the first line of what a recipe says of itself."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]


class _Verb(ModuleType):
    def __call__(self, name: str | None = None) -> Recipe | dict[str, str]:
        """Return a recipe by name, or all names with what each is for."""
        return {each: purpose(each) for each in RECIPES} if name is None else named(name)


# A submodule hides a function of the same name in the package, so the module itself is made callable.
sys.modules[__name__].__class__ = _Verb
