"""From results to figures: curves, the confusion matrix in `matrix`, what shows images in `pictures`.

Every function takes plain results and returns a `matplotlib.figure.Figure`. pyplot is never used and no
setting of matplotlib is left changed, so all of it works headless and in a notebook alike.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from firstlight.errors import InputError
from firstlight.figures.confusion import confusion
from firstlight.figures.images import augmentations, gradcam, misclassified
from firstlight.figures.style import (
    BLUE,
    BODY,
    INK,
    LINE,
    MUTED,
    PAPER,
    SMALL,
    TITLE,
    VERMILLION,
    WASH,
    Sheet,
    in_one_look,
    spread,
    to_png,
    width_of,
)
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

__all__ = [
    "augmentations",
    "confusion",
    "gradcam",
    "learning_curves",
    "lr_finder",
    "misclassified",
    "to_png",
]

_PARTS = (
    # whose, colour, width of the line
    ("train", MUTED, 1.5),
    ("validation", VERMILLION, 1.5),
    ("test", BLUE, 2.4),
)


@in_one_look
def learning_curves(
    history: History, schedule: Callable[[int], float] | None = None, *, label_smoothing: float = 0.0
) -> Sheet:
    """Draw accuracy, loss and learning rate over the epochs.

    schedule: step -> rate, drawn for every step; without it, the rate of each epoch's last step.
    label_smoothing: of the training loss, which lies higher by it; the other losses are without.
    """
    if not len(history):
        raise InputError("a history without a finished epoch has no learning curves")
    last = history.epochs[-1].epoch
    sheet = Sheet(8.4, 8.15)
    left, across = 0.75, 6.05
    places = ((0.54, 2.7), (3.74, 1.8), (6.04, 0.9))
    panels = [sheet.area(left, top, across, high) for top, high in places]
    for axes, top, title in zip(panels, (0.2, 3.4, 5.7), ("Accuracy", "Loss", "Learning rate"), strict=True):
        sheet.write(left, top, title, size=TITLE, weight="bold")
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 4, 5, 10]))
        axes.tick_params(axis="x", length=0 if axes is not panels[-1] else 3, labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("epoch")
    _curves(panels[0], history, "accuracy", lambda value: f"{value:.2%}", 0.1)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}%"))
    _curves(panels[1], history, "loss", lambda value: f"{value:.3f}", 0.2)
    _rates(panels[2], history, schedule)
    said = ["Train: running mean over augmented images, as the weights changed"]
    said[0] += f"; its loss alone is with label smoothing ({label_smoothing:g})." if label_smoothing else "."
    if any(epoch.test_accuracy is not None for epoch in history):
        said.append("Test: scored after training, from snapshots of the weights.")
    sheet.write(left, 7.58, "\n".join(said), size=SMALL, color=MUTED)
    return sheet


def _curves(axes: Axes, history: History, what: str, say: Callable[[float], str], least_span: float) -> None:
    """Draw one line for each part of the data that was measured, named at its end."""
    epochs = [epoch.epoch for epoch in history]
    lines: list[tuple[str, str, list[float]]] = []
    for rank, (part, colour, width) in enumerate(_PARTS):
        values = [math.nan if value is None else value for value in history.column(f"{part}_{what}")]
        if not np.isfinite(values).any():
            continue
        lines.append((part, colour, values))
        measured = [(x, y) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
        few = len(measured) < max(3, len(values))  # not every epoch was scored: show which
        axes.plot(
            *zip(*measured, strict=True),
            color=colour,
            lw=width,
            marker="o" if few else "",
            ms=width + 2,
            label=part,
            zorder=3 + rank,
        )
    known = np.array([value for _, _, values in lines for value in values])
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    span = max(high - low, least_span)  # what differs little must not look far apart
    middle, room = (low + high) / 2, 0.56 * span
    axes.set_ylim(max(middle - room, 0.0) if low >= 0 else middle - room, middle + room)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    ends = [
        next((x, y) for x, y in zip(epochs[::-1], values[::-1], strict=True) if math.isfinite(y))
        for _, _, values in lines
    ]
    bottom, top = axes.get_ylim()
    down = axes.get_position().height * float(axes.figure.get_figheight())  # type: ignore[union-attr]
    places = spread([(y - bottom) / (top - bottom) for _, y in ends], BODY * LINE / 72 / down)
    for (part, colour, _), (x, y), place in zip(lines, ends, places, strict=True):
        axes.plot([x], [y], "o", color=colour, ms=5.5, mec=PAPER, mew=1.2, clip_on=False, zorder=8)
        axes.text(
            1.02,
            place,
            f"{part} {say(y)}",
            color=colour,
            transform=axes.transAxes,
            va="center",
            weight="bold" if part == "test" else "normal",
            size=BODY + (part == "test"),
        )


def _rates(axes: Axes, history: History, schedule: Callable[[int], float] | None) -> None:
    if schedule is None:
        places = [float(epoch.epoch) for epoch in history]
        rates = [epoch.lr for epoch in history]
    else:
        done, per_epoch = history.epochs[-1].step, history.epochs[-1].step / history.epochs[-1].epoch
        places = [(step + 1) / per_epoch for step in range(done)]
        rates = [schedule(step) for step in range(done)]
    axes.plot(
        places,
        rates,
        color=INK,
        lw=1.5,
        marker="o" if len(rates) < 3 else "",
        ms=4,
        clip_on=False,
        label="learning rate",
        zorder=3,
    )
    axes.fill_between(places, 0, rates, color=WASH, lw=0)
    highest = max(rates)
    axes.set_ylim(0, 1.08 * highest or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 2.5, 5, 10]))
    peak = rates.index(highest)
    last = rates[-1] / axes.get_ylim()[1]
    axes.text(
        1.02, max(last, 0.06), f"last {rates[-1]:.3g}", transform=axes.transAxes, va="center", color=MUTED
    )
    if last < 0.6:
        axes.text(
            1.02,
            1.0,
            f"highest {highest:.3g}\nat epoch {places[peak]:.3g}",
            transform=axes.transAxes,
            va="top",
            color=INK,
        )


@in_one_look
def lr_finder(finding: LRFinding) -> Sheet:
    """Draw the range test: every loss, the smoothed curve, and the two rates that were chosen."""
    sheet = Sheet(8.4, 5.1)
    sheet.write(0.75, 0.2, "Learning-rate finder", size=TITLE, weight="bold")
    sheet.write(0.75, 0.46, f"{finding.method}, {len(finding.rates)} steps", size=SMALL, color=MUTED)
    axes = sheet.area(0.75, 1.05, 7.15, 2.75)
    axes.set_xscale("log")
    axes.axvspan(finding.min_lr, finding.peak_lr, color=BLUE, alpha=0.07, lw=0, zorder=0)
    axes.plot(
        finding.rates, finding.losses, color="#b4bcc9", lw=0.9, marker="o", ms=2.2, label="loss", zorder=2
    )
    axes.plot(finding.rates, finding.smoothed, color=BLUE, lw=2.6, label="smoothed loss", zorder=3)
    span = [*finding.rates, finding.min_lr, finding.peak_lr]
    axes.set_xlim(min(span) / 1.25, max(span) * 1.25)
    axes.set_ylim(*_loss_limits(finding))
    _mark(sheet, axes, {"LRMIN": finding.min_lr, "LRMAX": finding.peak_lr})
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    because = [
        *textwrap.wrap(f"LRMAX: {finding.peak_because}.", 112),
        *textwrap.wrap(f"LRMIN: {finding.min_because}.", 112),
    ]
    sheet.write(0.75, 4.48, "\n".join(because), size=SMALL, color=MUTED)
    return sheet


def _mark(sheet: Sheet, axes: Axes, rates: dict[str, float]) -> None:
    """Draw a line at each of two rates; name the lower above to its left, the higher to its right."""
    size, margin = BODY + 1, 0.15
    frame, across = axes.get_position(), float(sheet.get_figwidth())
    low, high = map(math.log, axes.get_xlim())
    words = [f"{name} {rate:g}" for name, rate in rates.items()]
    widths = [width_of(text, size, "bold") for text in words]
    wished = []
    for rate, width, before in zip(rates.values(), widths, (True, False), strict=True):
        axes.axvline(rate, color=BLUE, lw=1.1, zorder=1)
        place = across * (frame.x0 + frame.width * (math.log(rate) - low) / (high - low))
        wished.append(place - width - 0.05 if before else place + 0.05)
    starts = spread(wished, widths[0] + 0.1, margin, across - margin - widths[1])
    for start, text in zip(starts, words, strict=True):
        sheet.write(start, 0.83, text, size=size, color=BLUE, weight="bold")


def _loss_limits(finding: LRFinding) -> tuple[float, float]:
    """Return limits that the fall of the loss decides; a spike or the final explosion may leave the frame."""
    losses = [loss for loss in finding.losses if math.isfinite(loss)]
    smoothed = [loss for loss in finding.smoothed if math.isfinite(loss)]
    if not losses or not smoothed:
        return 0.0, 1.0
    low, first = min(*losses, *smoothed), smoothed[0]
    fall = max(first - min(smoothed), 0.02 * abs(first), 1e-9)
    high = min(max(*losses, *smoothed), first + 0.6 * fall)
    return max(low, min(smoothed) - 0.5 * fall) - 0.08 * fall, high + 0.08 * fall
