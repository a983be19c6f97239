"""What was chosen: functions that return a frozen `Recipe`. A new recipe is added to `RECIPES`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firstlight.errors import InputError, nearest, printable
from firstlight.machine.streams import seeded
from firstlight.models.network import Layer, layers
from firstlight.recipe import Recipe
from firstlight.recipes import assignment, cifar10, folder, settings, shapes

RECIPES: dict[str, Callable[[], Recipe]] = {
    "cifar10.assignment": cifar10.assignment,
    "cifar10.assignment_plus": cifar10.assignment_plus,
    "cifar10.fast": cifar10.fast,
    folder.SCRATCH: folder.scratch,
    folder.TRANSFER: folder.transfer,
    "shapes.demo": shapes.demo,
}


def named(name: str) -> Recipe:
    """Return the recipe of that name."""
    if name not in RECIPES:
        what = "recipe and no folder" if {os.sep, "/"} & {*name} else "recipe"
        raise InputError(f"there is no {what} {printable(name)!r}", nearest(name, list(RECIPES)))
    return RECIPES[name]()


def table() -> dict[str, str]:
    """Return the names of all recipes, each with the first line of its docstring."""
    return {name: (recipe.__doc__ or "").strip().splitlines()[0] for name, recipe in RECIPES.items()}


def resolve(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    data_dir: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    text: Mapping[str, str] | None = None,
    log: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> Recipe:
    """Return a recipe by name or value, with changes; a folder of pictures gives one that suits it.

    data_dir: where the data lies; only a recipe that follows the number of images looks there.
    epochs: shrinks or stretches the schedule in proportion. text: settings as a shell gives them; the other
    settings are those of `Recipe.replace`. log: is told what was chosen, and why.
    """
    chosen = recipe if isinstance(recipe, Recipe) else _by_name(recipe, log)
    if epochs is not None:
        chosen = chosen.over(epochs)
    if seed is not None:
        changes["seed"] = seed
    chosen = settings.with_text(chosen.replace(**changes), text or {})
    if isinstance(recipe, Recipe):
        return chosen
    given = {*changes, *(text or {}), *(["epochs"] if epochs is not None else [])}
    return folder.fitted(chosen, data_dir, given, log)


def _by_name(name: str | os.PathLike[str], log: Callable[[str], None]) -> Recipe:
    if name in RECIPES:
        return named(str(name))
    return folder.for_folder(name, log) or named(os.fspath(name))


def command(recipe: Recipe, precision: str) -> str | None:
    """Return the shell command that repeats a run; None for a recipe that has no name here."""
    if recipe.name not in RECIPES:
        return None
    words = settings.words(recipe, named(recipe.name))
    return shlex.join(["firstlight", "train", recipe.name, *words, "--precision", precision])


def description(recipe: Recipe, purpose: str = "") -> list[str]:
    """Write a recipe for a terminal: its network layer by layer, the assignment's lines, every setting."""
    facts = recipe.data.facts()
    lines = [f"{recipe.name}: {purpose}" if purpose else recipe.name, ""]
    if facts is None:
        lines += ["The network depends on the images: it is known after they are loaded.", ""]
    else:
        with seeded(0, "shown"):
            rows = layers(recipe.model(len(facts.classes), facts.shape[0]), facts.shape)
        lines += [f"The network, for an image of {'×'.join(map(str, facts.shape))}"]
        lines += [*(f"  {line}" for line in layer_table(rows)), ""]
        checks = assignment.checklist(recipe, facts)
        if checks:
            lines += [
                "Fixed by the assignment (☐ is ticked by the run)",
                *(f"  {line}" for line in checks),
                "",
            ]
    return [
        *lines,
        "Settings, each changed by --set KEY=VALUE",
        *(f"  {line}" for line in settings.table(recipe)),
    ]


def layer_table(rows: Sequence[Layer]) -> list[str]:
    """Write layers as lines of a table: name, operation, output, parameters; the total last."""
    cells = [
        (
            row.name,
            row.operation,
            "×".join(map(str, row.output)),
            f"{row.parameters:,}" if row.parameters else "",
        )
        for row in rows
    ]
    name, operation, output, parameters = (
        max(map(len, column), default=0) for column in zip(*cells, strict=True)
    )
    lines = [
        f"{a:{name}}  {b:{operation}}  {c:>{output}}  {d:>{parameters + 2}}".rstrip() for a, b, c, d in cells
    ]
    total = f"{sum(row.parameters for row in rows):,}"
    return [*lines, f"{'parameters in all':{name + operation + output + 4}}  {total:>{parameters + 2}}"]
