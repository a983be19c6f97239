"""`sweep`: a grid of settings × seeds, each cell an ordinary run; the best by validation, never by test."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import InputError, RunFailed
from firstlight.insight.intervals import Spread
from firstlight.jobs.progress import say, silent
from firstlight.jobs.train import train
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.record.run_folder import ROOT, RunFolder

SWEEP = "sweep.json"
"""In the outer folder: which settings and seeds were asked for, and what came out of each so far."""

Axes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Cell:
    """One setting under one seed. Accuracies are fractions; failed: why it came to no end, or empty."""

    values: Mapping[str, str]
    seed: int
    folder: str
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Sweep:
    """What came out of all cells, in the order of the grid; the seeds of a setting lie side by side."""

    path: Path
    cells: tuple[Cell, ...]

    def settings(self) -> list[tuple[Cell, ...]]:
        """Return the cells of each setting."""
        groups = itertools.groupby(self.cells, key=lambda cell: tuple(cell.values.items()))
        return [tuple(cells) for _, cells in groups]

    @property
    def best(self) -> Mapping[str, str] | None:
        """The setting with the highest mean validation accuracy, of those whose every seed was validated."""
        means = [(spread.mean, cells[0].values) for cells in self.settings() if (spread := _spread(cells))]
        return max(means, key=lambda pair: pair[0])[1] if means else None

    def __str__(self) -> str:
        """Say one line a setting, then which is best."""
        lines = []
        for cells in self.settings():
            spread, failed = _spread(cells), [cell for cell in cells if cell.failed]
            if failed:
                text = f"{len(failed)} of {len(cells)} failed: {failed[0].failed}"
            elif spread is None:
                text = "no validation accuracy"
            else:
                text = f"validation accuracy {spread.mean:.2%}"
                if spread.interval is not None:
                    low, high = spread.interval
                    text += f", 95 % interval {max(0.0, low):.2%} to {min(1.0, high):.2%} over seeds"
            lines.append(f"{words(cells[0].values)}: {text}")
        none = "none: no setting was validated under every seed"
        lines.append(f"best by validation: {none if self.best is None else words(self.best)}")
        return "\n".join(lines)


def _spread(cells: Sequence[Cell]) -> Spread | None:
    values = [cell.validation_accuracy for cell in cells if not cell.failed]
    known = tuple(value for value in values if value is not None)
    return Spread(known) if len(known) == len(cells) else None


def words(values: Mapping[str, str]) -> str:
    """Write a setting as a shell takes it."""
    return " ".join(f"{key}={value}" for key, value in values.items()) or "as the recipe is"


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets; brackets around a whole value hold a tuple: (24,32),(16,32)."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    values = [part.strip() for part in [*parts, text[start:]]]
    values = [
        value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value for value in values
    ]
    if depth or not all(values):
        what = "a bracket without its partner" if depth else "an empty value"
        raise InputError(f"{text!r} has {what}", "For example: peak_lr=0.2,0.4 or sides=(24,32),(16,32)")
    if len({*values}) < len(values):
        raise InputError(f"{text!r} names a value twice")
    return values


def sweep(
    recipe: str | Recipe,
    axes: Axes,
    *,
    seeds: int = 1,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> Sweep:
    """Train every setting of a grid under every seed, one after the other, each a run folder of its own.

    axes: the values of each setting, as text, such as {"peak_lr": ["0.2", "0.4"]}. seeds: so many, from the
    recipe's on. out: where a sweep with the same settings lies, it is finished; by default
    runs/NAME-sweep. options: device, precision, determinism and checkpoint_minutes of `train`.

    A cell that fails is a row with its reason. Raises InputError where a setting is none.
    """
    log = silent if quiet else say
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds takes a whole number of at least 1, not {seeds!r}", "For example: --seeds 5")
    grid = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    given: dict[str, Any] = {"data_dir": data_dir, "epochs": epochs, "seed": seed}
    chosen = [resolve(recipe, text=values, **given) for values in grid]  # a bad one stops it before a folder
    base = resolve(recipe, **given)
    if "seed" in axes:
        raise InputError(
            "seed is no setting of a sweep", "Use --seed for the first and --seeds for how many."
        )
    if len(grid) > 1 and not all(one.validation for one in chosen):
        message = "no validation images to choose a setting by; the test set chooses nothing"
        raise InputError(message, "Set validation=1000, say.")
    header = {
        "recipe": base.to_json(),
        "settings": {key: list(values) for key, values in axes.items()},
        "seeds": list(range(base.seed, base.seed + seeds)),
    }
    folder = _folder(header, base.name, None if out is None else Path(out))
    planned = [
        (one, Cell(values, one.seed + more, f"setting-{number}/seed-{one.seed + more}"))
        for number, (one, values) in enumerate(zip(chosen, grid, strict=True), 1)
        for more in range(seeds)
    ]
    cells: list[Cell] = []
    with folder.lock():
        folder.sweep()
        _write(folder, header, cells, finished=False)
        for number, (one, cell) in enumerate(planned, 1):
            log(f"\n{words(cell.values)}, seed {cell.seed}: {number} of {len(planned)}")
            try:
                cells.append(_trained(one, cell, folder.path, data_dir, quiet, log, options))
            except KeyboardInterrupt:
                log(f"{len(cells)} of {len(planned)} cells are done; the same command goes on: {folder.path}")
                raise
            except InputError:
                if not any(folder.path.glob("setting-*")):
                    folder.remove(".")  # nothing was trained, so nothing is worth keeping
                raise
            _write(folder, header, cells, finished=number == len(planned))
    result = Sweep(folder.path, tuple(cells))
    log(f"\n{result}\nsweep     {folder.path / SWEEP}")
    return result


def _trained(
    recipe: Recipe,
    cell: Cell,
    path: Path,
    data_dir: str | Path | None,
    quiet: bool,
    log: Callable[[str], None],
    options: Mapping[str, Any],
) -> Cell:
    """Train one cell, or go on with it, and return it with its numbers or with why it failed."""
    seeded, out = dataclasses.replace(recipe, seed=cell.seed), path / cell.folder
    try:
        run = train(seeded, data_dir=data_dir, out=out, resume="auto", quiet=quiet, **options)
    except (InputError, RunFailed) as error:
        if isinstance(error, InputError) and not any(path.glob("setting-*")):
            raise  # such as data that is missing: every cell would say the same
        log(f"failed: {error.message}")
        return dataclasses.replace(cell, failed=error.message)
    summary = run.summary
    return dataclasses.replace(
        cell, validation_accuracy=summary.validation_accuracy, test_accuracy=summary.test_accuracy
    )


def _folder(header: Mapping[str, Any], name: str, out: Path | None) -> RunFolder:
    """Return the folder of the same sweep, or a new one."""
    paths = sorted(ROOT.glob(f"{name}-sweep*")) if out is None else [out]
    for path in paths:
        folder = RunFolder(path)
        if not folder.has(SWEEP):
            continue
        before = folder.read_json(SWEEP)
        if all(before.get(key) == value for key, value in header.items()):
            if out is not None or not before.get("finished"):
                return folder
        elif out is not None:
            raise InputError(f"{out} holds a sweep of other settings or seeds", "Choose another --out.")
    return RunFolder.create(f"{name}-sweep", out)


def _write(folder: RunFolder, header: Mapping[str, Any], cells: Sequence[Cell], *, finished: bool) -> None:
    best = Sweep(folder.path, tuple(cells)).best if finished else None
    rows = [dataclasses.asdict(cell) for cell in cells]
    folder.write_json(SWEEP, {**header, "finished": finished, "best_by_validation": best, "cells": rows})
