"""Draw docs/pictures/time_accuracy.png: test accuracy on CIFAR-10 against training time, from results.csv.

    python benchmarks/time_accuracy.py [--out PICTURE]

Ours are means over the seeds of a recipe, on GPUs and on the CPU that trained `cifar10.assignment`. A recipe
that only another CPU has trained stands at its seconds there, with its R in words. The stock loop is not
trained to the end: its time is 24 R, of the newest row of reference.py on the first CPU, and its accuracy
that of `cifar10.assignment`, since both compute the same. Published figures are on other hardware and as
their authors time them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from rows import read_rows, stock_seconds

from firstlight.figures.style import (
    BLUE,
    BODY,
    FAINT,
    INK,
    LINE,
    MUTED,
    PAPER,
    SMALL,
    TITLE,
    Sheet,
    in_one_look,
    to_png,
    width_of,
)
from firstlight.insight.intervals import Spread
from firstlight.record.run_folder import write_atomic

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "time_accuracy.png"
EPOCHS = 24
"""Of the assignment, so that the stock loop takes as many R."""


@dataclass(frozen=True)
class Point:
    """One result. accuracy, low, high: fractions; low and high are the 95 % interval, None where unknown.

    kind: "ours", "stock" or "published". detail: what a second line says of it.
    """

    name: str
    kind: str
    seconds: float
    accuracy: float
    tta: bool
    low: float | None = None
    high: float | None = None
    detail: str = ""


# Name, seconds, accuracy, with TTA or not, hardware, source.
PUBLISHED = (
    ("hiverge", 1.99, 0.9401, True, "A100", "hiverge.ai/blog/cifar-speedrun, hiverge/cifar10-speedrun"),
    ("airbench94_muon", 2.59, 0.9401, True, "A100", "KellerJordan/cifar10-airbench, README"),
    ("airbench96_faster", 27.3, 0.9600, True, "A100", "KellerJordan/cifar10-airbench, README"),
    # Said to be 94.0 to 94.1 %, mean of 50 runs; the time is of the fourth part of the series.
    (
        "cifar10-fast",
        79.0,
        0.9405,
        False,
        "V100",
        "davidcpage/cifar10-fast; myrtle.ai, How to Train Your ResNet",
    ),
)


def points(rows: Sequence[dict[str, str]]) -> list[Point]:
    """Return what the picture shows: ours, the stock loop where there is a yardstick, published figures."""
    measured = yardstick(rows)
    home = measured[0] if measured else None
    trained = {row["recipe"] for row in rows if row.get("test_accuracy") and row["hardware"] == home}
    ours = [
        row
        for row in rows
        if home is None
        or row.get("device") == "cuda"
        or row["hardware"] == home
        or row.get("recipe") not in trained
    ]
    return [*our_points(ours, home), *stock_points(rows), *published_points()]


def published_points() -> list[Point]:
    return [
        Point(name, "published", seconds, accuracy, tta, detail=hardware)
        for name, seconds, accuracy, tta, hardware, _ in PUBLISHED
    ]


def our_points(rows: Iterable[dict[str, str]], home: str | None = None) -> list[Point]:
    """Return two points, without and with TTA, for each recipe, its epochs and hardware.

    Where such runs differ in whether their rates were found, those of which there are more stand for it, at
    a tie the newer. The time with TTA includes it where it was measured. On a GPU, times are of warm runs.

    home: the CPU that needs no name; None where none does.
    """
    rows = list(rows)
    yardsticks = stock_seconds(rows)
    groups: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        if row.get("test_accuracy") and row["recipe"].startswith("cifar10."):
            key = row["recipe"], row["epochs"], row["hardware"], row["precision"]
            groups.setdefault(key, {}).setdefault(row.get("rates") or "found", []).append(row)
    found = []
    for (recipe, epochs, hardware, _), ways in groups.items():
        runs = max(reversed(ways.values()), key=len)
        timed = [run for run in runs if run.get("start") != "cold"] or runs
        count = f"n = {len(runs)}" if len(runs) > 1 else "one seed"
        detail = f"{epochs} epochs, {count}"
        if runs[0].get("device") == "cuda" or (home is not None and hardware != home):
            detail += f", {short(hardware)}"
            if hardware in yardsticks:
                seconds = statistics.fmean(float(run["train_seconds"]) for run in timed)
                detail += f", {seconds / yardsticks[hardware]:.1f} R there"
        for tta in (False, True):
            values = [float(run["test_accuracy_tta" if tta else "test_accuracy"]) for run in runs]
            seconds = statistics.fmean(
                float(run["train_seconds"]) + (float(run.get("tta_seconds") or 0) if tta else 0)
                for run in timed
            )
            spread = Spread(tuple(values))
            low, high = spread.interval or _over_images(runs[0], tta)
            found.append(Point(recipe, "ours", seconds, spread.mean, tta, low, high, detail))
    return found


def short(hardware: str) -> str:
    """Return a GPU's name without its maker and its memory, a CPU's without its cores."""
    hardware = hardware.split(",")[0].replace("(R)", "").removesuffix(" Processor")
    words = hardware.removeprefix("NVIDIA ").split()
    numbered = [place for place, word in enumerate(words) if any(sign.isdigit() for sign in word)]
    return " ".join(words[: numbered[0] + 1] if numbered else words)


def _over_images(run: dict[str, str], tta: bool) -> tuple[float | None, float | None]:
    if tta or not run.get("test_low_95"):
        return None, None
    return float(run["test_low_95"]), float(run["test_high_95"])


def yardstick(rows: Iterable[dict[str, str]]) -> tuple[str, float] | None:
    """Return hardware and R, the stock loop's seconds for 50,000 images, of the newest row that has them.

    Only of hardware on which the assignment was trained: another chip's seconds are of no use beside it.
    """
    rows = list(rows)
    trained = {row["hardware"] for row in rows if _is_assignment(row)}
    measured = [
        (row["hardware"], float(row["r_seconds"]))
        for row in rows
        if row.get("r_seconds") and row["hardware"] in trained
    ]
    return measured[-1] if measured else None


def _is_assignment(row: dict[str, str]) -> bool:
    return (row.get("recipe"), row.get("epochs")) == ("cifar10.assignment", str(EPOCHS))


def stock_points(rows: Sequence[dict[str, str]]) -> list[Point]:
    """Return the stock loop at the assignment's accuracy on the yardstick's hardware, if both are known."""
    measured = yardstick(rows)
    if measured is None:
        return []
    hardware, r = measured
    same = our_points(row for row in rows if _is_assignment(row) and row["hardware"] == hardware)
    return [
        Point("stock loop", "stock", EPOCHS * r, point.accuracy, point.tta, detail=f"{EPOCHS} R")
        for point in same
    ]


WIDTH, HEIGHT = 8.4, 5.3
LEFT, TOP, ACROSS, DOWN = 0.75, 1.0, 7.4, 3.2
MARK = 0.09
"""Half the space that a mark takes, in inches."""
FAR = 0.3
"""Inches between a mark and its words beyond which a line joins them."""
COLOURS = {"ours": BLUE, "stock": INK, "published": MUTED}
TIMES = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}


@in_one_look
def time_accuracy(shown: Sequence[Point], measured: tuple[str, float] | None) -> Sheet:
    """Draw points on a logarithmic axis of time; with a yardstick a second axis says it in R."""
    sheet = Sheet(WIDTH, HEIGHT)
    sheet.write(LEFT, 0.2, "CIFAR-10: test accuracy against training time", size=TITLE, weight="bold")
    axes = sheet.area(LEFT, TOP, ACROSS, DOWN)
    low = 0.5 * math.floor(200 * (min(point.low or point.accuracy for point in shown) - 0.001))
    high = 0.5 * math.ceil(200 * (max(point.high or point.accuracy for point in shown) + 0.001))
    times = [point.seconds for point in shown]
    axes.set(xscale="log", xlim=(min(times) / 2.2, max(times) * 3.5), ylim=(low, high))
    inside = [time for time in TIMES if axes.get_xlim()[0] <= time <= axes.get_xlim()[1]]
    axes.set_xticks(inside, [TIMES[time] for time in inside])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.set_xlabel("training time")
    if measured is not None:
        _in_r(axes, measured[1])
    for point in shown:
        _draw(axes, point)
    _name(sheet, axes, shown)
    _explain(sheet, shown, measured)
    return sheet


def _in_r(axes: Axes, r: float) -> None:
    """Say the same times in R along the upper edge."""
    upper = axes.secondary_xaxis("top", functions=(lambda seconds: seconds / r, lambda times: times * r))
    low, high = (seconds / r for seconds in axes.get_xlim())
    ticks = [tick for tick in (0.01, 0.1, 1, 10, 100) if low <= tick <= high]
    upper.set_xticks(ticks, [f"{tick:g} R" for tick in ticks])
    upper.xaxis.set_minor_locator(NullLocator())
    upper.tick_params(colors=FAINT, labelcolor=MUTED, length=3)
    upper.spines["top"].set(visible=True, color=FAINT, linewidth=0.8)


def _draw(axes: Axes, point: Point) -> None:
    colour = COLOURS[point.kind]
    if point.low is not None and point.high is not None:
        ends = [100 * point.low, 100 * point.high]
        axes.plot([point.seconds] * 2, ends, "_-", color=colour, lw=1.3, markersize=6, alpha=0.6, zorder=2)
    axes.plot(
        point.seconds,
        100 * point.accuracy,
        marker={"ours": "o", "stock": "D", "published": "o"}[point.kind],
        markersize={"ours": 8.5, "stock": 7, "published": 6.5}[point.kind],
        markeredgewidth=1.6,
        color=colour,
        markerfacecolor=PAPER if point.tta else colour,
        zorder=4 if point.kind == "ours" else 3,
        clip_on=False,
    )


def _name(sheet: Sheet, axes: Axes, shown: Sequence[Point]) -> None:
    """Write near each result what it is, once for its points without and with TTA, where there is room."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()

    def inches(seconds: float, accuracy: float) -> tuple[float, float]:
        across = math.log(seconds / left) / math.log(right / left)
        return LEFT + ACROSS * across, TOP + DOWN * (1 - (100 * accuracy - low) / (high - low))

    taken: list[Box] = []
    for point in shown:
        x, y = inches(point.seconds, point.accuracy)
        upper, lower = (inches(1, edge or point.accuracy)[1] for edge in (point.high, point.low))
        taken += [(x - MARK, y - MARK, x + MARK, y + MARK), (x - 0.05, upper, x + 0.05, lower)]
    named: dict[tuple[str, str, str], list[Point]] = {}
    for point in shown:
        named.setdefault((point.kind, point.name, point.detail), []).append(point)
    # Published ones lie close together and have short names: they come first.
    for (kind, name, detail), its in sorted(named.items(), key=lambda item: item[0][0] != "published"):
        size, weight = (BODY, "bold") if kind == "ours" else (SMALL, "normal")
        width = max(width_of(name, size, weight), width_of(detail, SMALL))
        height = (size + SMALL) * LINE / 72
        marks = [inches(point.seconds, point.accuracy) for point in its]
        x, y, align = _room(marks, width, height, taken)
        taken.append((x, y, x + width, y + height))
        anchor = x if align == "left" else x + width
        sheet.write(anchor, y, name, size=size, weight=weight, color=COLOURS[kind], ha=align)
        sheet.write(anchor, y + size * LINE / 72, detail, size=SMALL, color=MUTED, ha=align)
        near = min(marks, key=lambda mark: abs(mark[1] - y - height / 2))
        if abs(near[1] - min(max(near[1], y), y + height)) > FAR:
            end = y + height if near[1] > y else y
            _join(sheet, (anchor, end), near)


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in inches."""


def _room(
    marks: Sequence[tuple[float, float]], width: float, height: float, taken: Sequence[Box]
) -> tuple[float, float, str]:
    """Return the place for words that is nearest to their marks among those that hide nothing."""
    middle = statistics.fmean(y for _, y in marks)
    choices = []
    for step in range(-80, 81):
        y = middle - height / 2 + 0.02 * step
        for x, align, cost in (
            (max(x for x, _ in marks) + MARK + 0.06, "left", 0.0),
            (min(x for x, _ in marks) - MARK - 0.06 - width, "right", 0.05),
        ):
            choices.append((_hidden(x, y, width, height, taken), abs(0.02 * step) + cost, x, y, align))
    _, _, x, y, align = min(choices)
    return x, y, align


def _hidden(x: float, y: float, width: float, height: float, taken: Iterable[Box]) -> float:
    """Return how much of what is there words would hide, in square inches; outside the axes counts too."""
    inside_x = min(x + width, LEFT + ACROSS) - max(x, LEFT + 0.03)
    inside_y = min(y + height, TOP + DOWN - 0.02) - max(y, TOP + 0.02)
    hidden = width * height - max(0.0, inside_x) * max(0.0, inside_y)
    for left, top, right, bottom in taken:
        across = min(x + width, right) - max(x, left)
        hidden += max(0.0, across) * max(0.0, min(y + height, bottom) - max(y, top))
    return round(hidden, 6)


def _join(sheet: Sheet, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a thin line between two places, given in inches."""
    over = sheet.area(0, 0, WIDTH, HEIGHT)
    over.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    over.axis("off")
    over.plot(*zip(begin, end, strict=True), color=FAINT, lw=0.8)


def _explain(sheet: Sheet, shown: Sequence[Point], measured: tuple[str, float] | None) -> None:
    """Say what the marks mean above the picture, and what the numbers are below it."""
    key = sheet.area(LEFT, 0.47, ACROSS, 0.2)
    key.set(xlim=(0, ACROSS), ylim=(0, 1))
    key.axis("off")
    x = 0.06
    for tta, words in ((False, "without TTA"), (True, "with TTA")):
        key.plot(
            x,
            0.5,
            "o",
            markersize=7,
            markeredgewidth=1.5,
            color=MUTED,
            markerfacecolor=PAPER if tta else MUTED,
        )
        sheet.write(LEFT + x + 0.12, 0.51, words, size=SMALL, color=MUTED)
        x += width_of(words, SMALL) + 0.45
    key.plot([x, x], [0.05, 0.95], "_-", color=MUTED, lw=1.3, markersize=6, alpha=0.8)
    sheet.write(LEFT + x + 0.12, 0.51, "95 % interval, of the mean where n > 1", size=SMALL, color=MUTED)
    lines = []
    if measured is not None:
        hardware, r = measured
        lines.append(f"R: the stock PyTorch loop's time for 50,000 images on {hardware}: {r:.0f} s.")
    if any(point.kind == "stock" for point in shown):
        lines.append(
            f"Stock loop: {EPOCHS} R by its measured step, at the accuracy of cifar10.assignment, since it "
            "computes the same."
        )
    lines.append(
        "Blue: ours, on that CPU where no chip is named. Grey: published, on GPUs, as their authors time it."
    )
    sheet.write(LEFT, TOP + DOWN + 0.5, "\n".join(lines), size=SMALL, color=MUTED)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    rows = read_rows()
    write_atomic(options.out, to_png(time_accuracy(points(rows), yardstick(rows))))
    print(options.out)


if __name__ == "__main__":
    main()
