"""`Sweep`: what came out of a grid of settings under several seeds; the best by validation, never by test."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from firstlight.errors import InputError, printable
from firstlight.insight.comparison import SIGNIFICANCE
from firstlight.insight.intervals import Spread, holm, paired_p_value
from firstlight.record.run_folder import RunFolder
from firstlight.record.values import MOST_COUNT, read

SWEEP = "sweep.json"
"""In the outer folder: which settings and seeds were asked for, and what came out of each so far."""
SWEEP_PAGE = "sweep.html"


@dataclass(frozen=True)
class Cell:
    """One setting under one seed. Accuracies are fractions; failed: why it came to no end, or empty.

    threads, hardware: read back from the run, not what was asked for.
    """

    values: Mapping[str, str]
    seed: int
    folder: str
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    train_seconds: float | None = None
    threads: int | None = None
    hardware: str | None = None
    failed: str = ""
    test_accuracy_tta: float | None = None

    @classmethod
    def from_json(cls, row: Any, where: str) -> Self:
        """Read a row of a sweep's file; what this version does not know is left out.

        where: names the row, for the InputError where a value is of the wrong kind or beyond its bounds.
        """
        bounds = {"seed": (0, 2**63 - 1), "threads": (0, MOST_COUNT), "train_seconds": (0, MOST_COUNT)}
        bounds |= dict.fromkeys(("validation_accuracy", "test_accuracy", "test_accuracy_tta"), (0, 1))
        return read(cls, row, where, bounds)


@dataclass(frozen=True)
class Difference:
    """Two settings under the same seeds. differences: second less first, seed by seed, as fractions.

    p_value: of a paired t-test over seeds; adjusted: after Holm's correction for all pairs of the sweep.
    Both are None where every seed gives the same difference, which no spread can be taken of.
    """

    first: Mapping[str, str]
    second: Mapping[str, str]
    differences: tuple[float, ...]
    p_value: float | None
    adjusted: float | None

    @property
    def spread(self) -> Spread:
        return Spread(self.differences)

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise, after the correction."""
        return self.adjusted is not None and self.adjusted < SIGNIFICANCE


@dataclass(frozen=True)
class Sweep:
    """What came out of all cells, in the order of the grid; the seeds of a setting lie side by side."""

    path: Path
    cells: tuple[Cell, ...]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a sweep from its folder; it need not be finished."""
        folder = RunFolder(Path(path))
        if not folder.has(SWEEP):
            raise InputError(f"{path} holds no {SWEEP}")
        rows = folder.read_json(SWEEP).get("cells")
        if not isinstance(rows, list):
            raise InputError(f"{folder.path / SWEEP} holds no cells")
        where = printable(folder.path / SWEEP)
        return cls(
            folder.path,
            tuple(Cell.from_json(row, f"cell {number} of {where}") for number, row in enumerate(rows, 1)),
        )

    @cached_property
    def fixed(self) -> dict[str, str]:
        """What all settings share, of several."""
        return fixed([cell.values for cell in self.cells])

    def title(self, values: Mapping[str, str]) -> str:
        """Write a setting without what all of them share."""
        return words({key: value for key, value in values.items() if key not in self.fixed})

    def settings(self) -> list[tuple[Cell, ...]]:
        """Return the cells of each setting."""
        groups = itertools.groupby(self.cells, key=lambda cell: tuple(cell.values.items()))
        return [tuple(cells) for _, cells in groups]

    @cached_property
    def best(self) -> Mapping[str, str] | None:
        """The setting with the highest mean validation accuracy, of those whose every seed was validated."""
        means = [(spread.mean, cells[0].values) for cells in self.settings() if (spread := spread_of(cells))]
        return max(means, key=lambda pair: pair[0])[1] if means else None

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Every pair of settings with the same two seeds or more, by validation accuracy.

        Holm's correction is over all of them, so it holds for whichever pair is looked at afterwards.
        """
        whole = [cells for cells in self.settings() if len(cells) > 1 and spread_of(cells)]
        rows = []
        for first, second in itertools.combinations(whole, 2):
            if [cell.seed for cell in first] == [cell.seed for cell in second]:
                pairs = zip(_accuracies(first), _accuracies(second), strict=True)
                values = tuple(after - before for before, after in pairs)
                rows.append(
                    Difference(first[0].values, second[0].values, values, paired_p_value(values), None)
                )
        known = [row.p_value for row in rows if row.p_value is not None]
        adjusted = iter(holm(known))
        return tuple(
            row if row.p_value is None else dataclasses.replace(row, adjusted=next(adjusted)) for row in rows
        )

    def against_best(self) -> list[Difference]:
        """Return the pairs with the best setting, the best second, in the order of the grid."""
        pairs = []
        for row in self.differences:
            if row.second == self.best:
                pairs.append(row)
            elif row.first == self.best:
                turned = tuple(-value for value in row.differences)
                pairs.append(dataclasses.replace(row, first=row.second, second=row.first, differences=turned))
        return pairs

    def verdict(self) -> str:
        """Say which setting is best by validation, and of how many others that is more than noise.

        Of a single one say its test accuracy: there is nothing to choose.
        """
        if len(self.settings()) == 1:
            averaged = [cell.test_accuracy_tta for cell in self.cells if cell.test_accuracy_tta is not None]
            mean = sum(averaged) / len(averaged) if len(averaged) == len(self.cells) else None
            views = "" if mean is None else f"; {mean:.2%} with TTA"
            return f"test accuracy {of_tests(self.cells) or 'not known'}{views}"
        if self.best is None:
            return "best by validation: none: no setting was validated under every seed"
        line = f"best by validation: {self.title(self.best)}"
        pairs = self.against_best()
        validated = [cells for cells in self.settings() if spread_of(cells)]
        if not pairs:
            return line if len(validated) == 1 else f"{line}; one seed does not say whether by noise"
        better = sum(row.differs for row in pairs)
        return (
            f"{line}; better than {better} of {len(pairs)} others by more than noise "
            f"(paired t-tests over {len(pairs[0].differences)} seeds, Holm's correction for "
            f"{len(self.differences)} {'pair' if len(self.differences) == 1 else 'pairs'})"
        )

    def __str__(self) -> str:
        """Say one line a setting, then which is best."""
        return "\n".join(
            [*(f"{self.title(cells[0].values)}: {said(cells)}" for cells in self.settings()), self.verdict()]
        )


def said(cells: Sequence[Cell]) -> str:
    """Say what came out of one setting."""
    spread, failed = spread_of(cells), [cell for cell in cells if cell.failed]
    if failed:
        return f"{len(failed)} of {len(cells)} failed: {failed[0].failed}"
    if spread is None:
        return "no validation accuracy"
    text = f"validation accuracy {spread.mean:.2%}"
    if spread.interval is not None:
        low, high = spread.interval
        text += f", 95 % interval {max(0.0, low):.2%} to {min(1.0, high):.2%} over seeds"
    return text


def of_tests(cells: Sequence[Cell]) -> str:
    """Say the mean test accuracy of one setting and its interval; nothing where one is missing."""
    values = [cell.test_accuracy for cell in cells if cell.test_accuracy is not None]
    if len(values) < len(cells) or not values:
        return ""
    spread = Spread(tuple(values))
    if spread.interval is None:
        return f"{spread.mean:.2%}"
    low, high = spread.interval
    interval = f"{max(0.0, low):.2%} to {min(1.0, high):.2%}"
    return f"{spread.mean:.2%}, 95 % interval {interval} over {len(values)} seeds"


def spread_of(cells: Sequence[Cell]) -> Spread | None:
    """Return the validation accuracies of one setting, None where a seed lacks its own."""
    values = _accuracies(cells)
    return Spread(tuple(values)) if values and len(values) == len(cells) else None


def _accuracies(cells: Sequence[Cell]) -> list[float]:
    values = [cell.validation_accuracy for cell in cells if not cell.failed]
    return [value for value in values if value is not None]


def fixed(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the values that all settings share; of a single one nothing, since it would have no name."""
    first = settings[0] if settings else {}
    if all(values == first for values in settings):
        return {}
    return {
        key: value for key, value in first.items() if all(values.get(key) == value for values in settings)
    }


def words(values: Mapping[str, str]) -> str:
    """Write a setting as a shell takes it."""
    return printable(" ".join(f"{key}={value}" for key, value in values.items())) or "as the recipe is"
