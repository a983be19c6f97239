"""Draw docs/pictures/time_accuracy.png: test accuracy on CIFAR-10 against training time, from the rows.

    python -m benchmarks.publish.time_accuracy

Ours are means over the seeds of a recipe, on GPUs and on the CPU that trained `cifar10.assignment`. A recipe
that only another CPU has trained stands at its seconds there, with its R in words. The stock loop is not
trained to the end: its time is 24 R, of the newest row of reference.py on the first CPU, and its accuracy
that of `cifar10.assignment`, since both compute the same. Published figures are on other hardware and as
their authors time them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.measure import BENCHMARKS
from benchmarks.publish.rows import Group, Tables, groups, read_tables, short, yardsticks
from firstlight.figures import style

PICTURE = BENCHMARKS.parent / "docs" / "pictures" / "time_accuracy.png"
EPOCHS = 24
"""Of the assignment, so that the stock loop takes as many R."""


@dataclass(frozen=True)
class Point:
    """One result. accuracy and the 95 % interval are fractions; the interval is None where unknown.

    kind: "ours", "stock" or "published". detail: its second line.
    """

    name: str
    kind: str
    seconds: float
    accuracy: float
    tta: bool
    interval: tuple[float, float] | None = None
    detail: str = ""


# hiverge.ai/blog/cifar-speedrun; KellerJordan/cifar10-airbench; davidcpage/cifar10-fast and myrtle.ai.
# The authors of the last give 94.0 to 94.1 %, the mean of 50 runs; the time is of the series' fourth part.
PUBLISHED = (
    Point("hiverge", "published", 1.99, 0.9401, True, None, "A100"),
    Point("airbench94_muon", "published", 2.59, 0.9401, True, None, "A100"),
    Point("airbench96_faster", "published", 27.3, 0.96, True, None, "A100"),
    Point("cifar10-fast", "published", 79.0, 0.9405, False, None, "V100"),
)


def points(tables: Tables) -> list[Point]:
    """Return what the picture shows: ours, the stock loop, published figures."""
    return [*our_points(tables), *stock_points(tables), *PUBLISHED]


def our_points(tables: Tables) -> list[Point]:
    """Return two points, without and with TTA, for each recipe, its epochs and hardware."""
    home, shown = yardstick(tables)[0], _shown(tables)
    at_home = {group.recipe for group in shown if group.hardware == home}
    result = []
    for group in shown:
        elsewhere = group.hardware != home
        if elsewhere and group.newest["device"] == "cpu" and group.recipe in at_home:
            continue
        count = f"n = {len(group.runs)}" if len(group.runs) > 1 else "one seed"
        detail = f"{group.newest['epochs']} epochs, {count}"
        if elsewhere:
            detail += f", {short(group.hardware)}"
            if row := yardsticks(tables).get(group.hardware):
                detail += f", {group.seconds(tta=False) / float(row['r_seconds']):.1f} R there"
        for tta in (False, True):
            mean, interval = group.accuracy(tta=tta).mean, group.interval(tta=tta)
            result.append(Point(group.recipe, "ours", group.seconds(tta=tta), mean, tta, interval, detail))
    return result


def _shown(tables: Tables) -> list[Group]:
    """Return the runs on CIFAR-10: of those with found and given rates the more, at a tie the newer."""
    shown: dict[tuple[str, ...], Group] = {}
    for group in groups(tables):
        key = group.recipe, group.newest["epochs"], group.hardware, group.newest["precision"]
        # Behind a comma stands what differs from the recipe.
        is_recipe = group.recipe.startswith("cifar10.") and "," not in group.recipe
        if is_recipe and len(group.runs) >= len(shown.get(key, group).runs):
            shown[key] = group
    return list(shown.values())


def _assignments(tables: Tables) -> dict[str, Group]:
    """Return the runs of the assignment by hardware."""
    wanted = "cifar10.assignment", str(EPOCHS)
    runs = [group for group in _shown(tables) if (group.recipe, group.newest["epochs"]) == wanted]
    return {group.hardware: group for group in runs}


def yardstick(tables: Tables) -> tuple[str, float]:
    """Return hardware and R of the newest row whose hardware has trained the assignment."""
    trained = _assignments(tables)
    newest = [row for row in tables["reference"] if row["hardware"] in trained][-1]
    return newest["hardware"], float(newest["r_seconds"])


def stock_points(tables: Tables) -> list[Point]:
    """Return the stock loop at the assignment's accuracy on the yardstick's hardware."""
    hardware, r = yardstick(tables)
    group = _assignments(tables)[hardware]
    return [
        Point("stock loop", "stock", EPOCHS * r, group.accuracy(tta=tta).mean, tta, detail=f"{EPOCHS} R")
        for tta in (False, True)
    ]


WIDTH, HEIGHT = 8.4, 5.3
LEFT, TOP, ACROSS, DOWN = 0.75, 1.0, 7.4, 3.2
COLOURS = {"ours": style.BLUE, "stock": style.INK, "published": style.MUTED}
SIDES = {"hiverge": -1, "cifar10-fast": 0}
"""Whose names stand to the left of their marks (-1) or above (0); ours stand to the left from a minute on.
All others stand to the right."""
SHAPES = {"ours": ("o", 8.5), "stock": ("D", 7.0), "published": ("o", 6.5)}
TIMES = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}


@style.in_one_look
def time_accuracy(shown: Sequence[Point], measured: tuple[str, float]) -> style.Sheet:
    """Draw points on a logarithmic axis of time; a second axis gives it in R."""
    sheet = style.Sheet(WIDTH, HEIGHT)
    sheet.write(LEFT, 0.2, "CIFAR-10: test accuracy against training time", size=style.TITLE, weight="bold")
    axes = sheet.area(LEFT, TOP, ACROSS, DOWN)
    ends = [end for point in shown for end in (point.accuracy, *(point.interval or ()))]
    low, high = 0.5 * math.floor(200 * (min(ends) - 0.001)), 0.5 * math.ceil(200 * (max(ends) + 0.001))
    times = [point.seconds for point in shown]
    axes.set(xscale="log", xlim=(min(times) / 5, max(times) * 3.5), ylim=(low, high), xlabel="training time")
    _ticks(axes, TIMES)
    axes.yaxis.set_major_formatter("{x:g}%")
    r = measured[1]
    upper = axes.secondary_xaxis("top", functions=(lambda seconds: seconds / r, lambda times: times * r))
    upper.set_xlim(*(seconds / r for seconds in axes.get_xlim()))
    _ticks(upper, {tick: f"{tick:g} R" for tick in (0.01, 0.1, 1, 10, 100)})
    upper.tick_params(colors=style.FAINT, labelcolor=style.MUTED, length=3)
    upper.spines["top"].set(visible=True, color=style.FAINT, linewidth=0.8)
    for point in shown:
        _draw(axes, point)
    _name(axes, shown)
    _explain(sheet, measured)
    return sheet


def _ticks(axes: Axes, words: dict[float, str]) -> None:
    low, high = axes.get_xlim()
    inside = {tick: text for tick, text in words.items() if low <= tick <= high}
    axes.set_xticks(list(inside), list(inside.values()))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw(axes: Axes, point: Point) -> None:
    colour, (shape, size) = COLOURS[point.kind], SHAPES[point.kind]
    if point.interval is not None:
        ends = [100 * end for end in point.interval]
        axes.plot([point.seconds] * 2, ends, "_-", color=colour, lw=1.3, markersize=6, alpha=0.6, zorder=2)
    face, above = style.PAPER if point.tta else colour, 4 if point.kind == "ours" else 3
    look = {"color": colour, "markerfacecolor": face, "markeredgewidth": 1.6, "clip_on": False}
    axes.plot(point.seconds, 100 * point.accuracy, shape, markersize=size, zorder=above, **look)


def _name(axes: Axes, shown: Sequence[Point]) -> None:
    """Write at each result what it is, once for its points without and with TTA."""
    results: dict[tuple[str, str, str], list[Point]] = {}
    for point in shown:
        results.setdefault((point.kind, point.name, point.detail), []).append(point)
    for (kind, name, detail), marks in results.items():
        seconds = [point.seconds for point in marks]
        side = SIDES.get(name, -1 if kind == "ours" and min(seconds) > 60 else 1)
        place = min(seconds) if side < 0 else max(seconds), 50 * (marks[0].accuracy + marks[-1].accuracy)
        look: dict[str, Any] = {"textcoords": "offset points", "ha": ("center", "left", "right")[side]}
        small = {**look, "size": style.SMALL, "color": style.MUTED}
        if kind == "published":
            axes.annotate(f"{name}, {detail}", place, (10 * side, 0 if side else 10), va="center", **small)
        else:
            weight = "bold" if kind == "ours" else "normal"
            axes.annotate(name, place, (12 * side, 2), weight=weight, color=COLOURS[kind], **look)
            axes.annotate(detail, place, (12 * side, -2), va="top", **small)


def _explain(sheet: style.Sheet, measured: tuple[str, float]) -> None:
    """Say what the marks mean above the picture, and what the numbers are below it."""
    key = sheet.area(LEFT, 0.47, ACROSS, 0.2)
    key.set(xlim=(0, ACROSS), ylim=(0, 1))
    key.axis("off")
    look: dict[str, Any] = {"color": style.MUTED, "markeredgewidth": 1.5}
    key.plot(0.06, 0.5, "o", markersize=7, **look)
    key.plot(1.2, 0.5, "o", markersize=7, markerfacecolor=style.PAPER, **look)
    key.plot([3.7, 3.7], [0.05, 0.95], "_-", markersize=6, lw=1.3, alpha=0.8, **look)
    interval = "95 % interval, of the mean where n > 1"
    for x, words in ((0.18, "without TTA"), (1.32, "with test-time augmentation (TTA)"), (3.82, interval)):
        sheet.write(LEFT + x, 0.51, words, size=style.SMALL, color=style.MUTED)
    hardware, r = measured
    lines = (
        f"R: the stock PyTorch loop's time for 50,000 images on {hardware}: {r:.0f} s.",
        f"Stock loop: {EPOCHS} R by its measured step, at the accuracy of cifar10.assignment, since it "
        "computes the same.",
        "Blue: ours, on that CPU where no chip is named. Grey: published, on GPUs, as their authors time it.",
    )
    sheet.write(LEFT, TOP + DOWN + 0.5, "\n".join(lines), size=style.SMALL, color=style.MUTED)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    tables = read_tables()
    PICTURE.write_bytes(style.to_png(time_accuracy(points(tables), yardstick(tables))))


if __name__ == "__main__":
    main()
