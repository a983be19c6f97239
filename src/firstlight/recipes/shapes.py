"""Recipes for the built-in set `shapes`."""

from __future__ import annotations

import dataclasses

from firstlight.data.shapes import Shapes
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.recipe import Recipe
from firstlight.recipes import cifar10


def demo() -> Recipe:
    """The assignment, narrower, on `shapes`: about a minute on two CPU cores."""
    return dataclasses.replace(
        cifar10.assignment(),
        name="shapes.demo",
        data=Shapes(),
        model=CustomResNetSpec(width=16, bias=False, logit_scale=0.125),
    )
