"""A sweep as one HTML file: a table, parallel coordinates, and which differences are more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firstlight.page.page import Page, templates
from firstlight.record.run_folder import write_atomic
from firstlight.record.sweep import SWEEP_PAGE, Cell, Sweep, said, spread_of, words

_WIDTH, _HEIGHT, _TOP, _SIDE = 720, 260, 40, 90
"""Of the picture, in units of its view box: the axes lie inside these margins."""


@dataclass(frozen=True)
class Axis:
    """One vertical axis of the picture: a setting, or the accuracy. ticks: text and height of each."""

    name: str
    x: float
    ticks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ParallelLine:
    """One setting as a line through all axes. strength: 0 for the lowest accuracy, 1 for the highest."""

    title: str
    points: str
    best: bool
    strength: float


def write_sweep_page(sweep: Sweep, name: str) -> Page:
    """Write the page into the sweep's folder; its links lead to the reports of the cells beside it."""
    axes, lines = parallel_coordinates(sweep)
    text = (
        templates()
        .get_template("sweep.html")
        .render(
            name=name,
            folder=sweep.path.resolve().name,
            sweep=sweep,
            rows=sorted(map(_row, sweep.settings()), key=lambda row: -(row["mean"] or 0.0)),
            against={words(pair.first): pair for pair in sweep.against_best()},
            axes=axes,
            lines=lines,
            size=(_WIDTH, _HEIGHT),
            top=_TOP,
            words=words,
        )
    )
    path = sweep.path / SWEEP_PAGE
    write_atomic(path, text)
    return Page(path)


def _row(cells: tuple[Cell, ...]) -> dict[str, Any]:
    spread = spread_of(cells)
    tests = [cell.test_accuracy for cell in cells if cell.test_accuracy is not None]
    low, high = (spread and spread.interval) or (None, None)
    return {
        "setting": cells[0].values,
        "said": said(cells),
        "seeds": len(cells),
        "mean": None if spread is None else spread.mean,
        "low": None if low is None else max(0.0, low),
        "high": None if high is None else min(1.0, high),
        "test": sum(tests) / len(tests) if len(tests) == len(cells) else None,
    }


def parallel_coordinates(sweep: Sweep) -> tuple[list[Axis], list[ParallelLine]]:
    """Place every validated setting on one axis for each value that differs, and on one of its accuracy.

    Numbers are placed by rank, since rates are chosen by factors; the accuracy is to scale.
    """
    means = [(cells[0].values, spread.mean) for cells in sweep.settings() if (spread := spread_of(cells))]
    keys = [key for key in (means[0][0] if means else {}) if len({values[key] for values, _ in means}) > 1]
    if not keys:
        return [], []
    low, high = min(mean for _, mean in means), max(mean for _, mean in means)
    bottom = _HEIGHT - 20.0
    step = (_WIDTH - 2 * _SIDE) / len(keys)

    def height(share: float) -> float:
        return round(bottom - share * (bottom - _TOP), 1)

    axes, places = [], []
    for number, key in enumerate(keys):
        ranked = sorted({values[key] for values, _ in means}, key=_order)
        shares = {value: height(rank / (len(ranked) - 1)) for rank, value in enumerate(ranked)}
        axes.append(Axis(key, round(_SIDE + number * step, 1), tuple(shares.items())))
        places.append(shares)
    ends = (
        ((f"{low:.2%}", height(0)), (f"{high:.2%}", height(1)))
        if high > low
        else ((f"{low:.2%}", height(0.5)),)
    )
    axes.append(Axis("validation accuracy", _WIDTH - _SIDE, ends))
    lines = []
    for values, mean in sorted(means, key=lambda pair: pair[1]):
        strength = (mean - low) / (high - low) if high > low else 0.5
        heights = [shares[values[key]] for key, shares in zip(keys, places, strict=True)] + [height(strength)]
        points = " ".join(f"{axis.x},{y}" for axis, y in zip(axes, heights, strict=True))
        title = f"{words({key: values[key] for key in keys})}: {mean:.2%}"
        lines.append(ParallelLine(title, points, values == sweep.best, round(strength, 3)))
    return axes, lines


def _order(value: str) -> tuple[bool, float, str]:
    """Order numbers by size, and words behind them."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
