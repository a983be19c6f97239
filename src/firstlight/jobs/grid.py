"""The settings of a sweep: values separated by commas, their grid, and a random sample of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from firstlight.errors import InputError
from firstlight.machine.streams import stream
from firstlight.recipes.settings import text_of

Axes = Mapping[str, Sequence[Any]]
"""The values of each setting: text as `--set` takes it, or values of the field's type."""


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets; brackets around a whole value hold a tuple: (24,32),(16,32)."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    values = [part.strip() for part in [*parts, text[start:]]]
    values = [
        value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value for value in values
    ]
    if depth or not all(values):
        what = "a bracket without its partner" if depth else "an empty value"
        raise InputError(f"{text!r} has {what}", "For example: peak_lr=0.2,0.4 or sides=(24,32),(16,32)")
    return values


def grid(axes: Axes, sample: int | None, seed: int) -> list[dict[str, str]]:
    """Return every combination of values, or `sample` different ones in the order of the grid.

    The draw follows from the seed, so the same command draws the same. Raises InputError for an axis
    without values or with the same one twice.
    """
    if "seed" in axes:
        raise InputError(
            "seed is no setting of a sweep", "Use --seed for the first and --seeds for how many."
        )
    texts = {key: _texts(key, values) for key, values in axes.items()}
    sizes = [len(values) for values in texts.values()]
    if sample is None:
        rows = itertools.product(*texts.values())
        return [dict(zip(texts, row, strict=True)) for row in rows]
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InputError(f"random takes a whole number of at least 1, not {sample!r}", "Such as --random 20")
    # By number, since a grid of many settings need not fit into memory.
    size, generator = math.prod(sizes), stream(seed, "sweep")
    if sample >= size:
        return grid(axes, None, seed)
    numbers = {*torch.randperm(size, generator=generator)[:sample].tolist()} if size < 1_000_000 else set()
    while len(numbers) < sample:
        numbers.add(int(torch.randint(size, (), generator=generator)))
    return [_row(texts, number) for number in sorted(numbers)]


def _texts(key: str, values: Sequence[Any]) -> list[str]:
    if isinstance(values, str) or not values:
        raise InputError(f"{key} takes a list of values, not {values!r}", 'Such as {"peak_lr": [0.2, 0.4]}')
    texts = [value if isinstance(value, str) else text_of(value) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise InputError(f"{key} names the value {twice} twice")
    return texts


def _row(texts: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """Return the combination of that number; the last setting changes fastest."""
    row = {}
    for key in reversed([*texts]):
        number, index = divmod(number, len(texts[key]))
        row[key] = texts[key][index]
    return {key: row[key] for key in texts}
