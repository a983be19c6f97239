"""The learning curves of a run, and what its learning-rate finder saw, as figures.

As all figures, they are drawn from plain results. pyplot is never used and no setting of matplotlib is left
changed, so they work in a script and in a notebook alike.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from firstlight.errors import InputError
from firstlight.figures.style import (
    BLUE,
    BODY,
    INK,
    LINE,
    MUTED,
    NOTE,
    PAPER,
    SMALL,
    TITLE,
    VERMILLION,
    WASH,
    Sheet,
    in_one_look,
    keep_apart,
    width_of,
)
from firstlight.training.classic_rules import classic_rates
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

_STEPS = [1, 2, 2.5, 5, 10]
# part of the data, colour, width of the line
_PARTS = (("train", MUTED, 1.5), ("validation", VERMILLION, 1.5), ("test", BLUE, 2.4))


@in_one_look
def learning_curves(
    history: History, schedule: Callable[[int], float] | None = None, *, label_smoothing: float = 0.0
) -> Sheet:
    """Draw accuracy, loss and learning rate over the epochs.

    schedule: step -> rate, drawn for every step; without it, the rate of each epoch's last step.
    label_smoothing: of the training loss, which is higher for it; the other losses are without.
    """
    if not len(history):
        raise InputError("a history without a finished epoch has no learning curves")
    sheet = Sheet(8.4, 8.15)
    left, across = 0.75, 6.05
    panels = [sheet.area(left, top, across, high) for top, high in ((0.54, 2.7), (3.74, 1.8), (6.04, 0.9))]
    for axes, top, title in zip(panels, (0.2, 3.4, 5.7), ("Accuracy", "Loss", "Learning rate"), strict=True):
        sheet.write(left, top, title, size=TITLE, weight="bold")
        axes.set_xlim(0, history.epochs[-1].epoch)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, steps=[1, 2, 4, 5, 10]))
        axes.tick_params(axis="x", length=0 if axes is not panels[-1] else 3, labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("epoch")
    _curves(panels[0], history, "accuracy", "{:.2%}", 0.1)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}%"))
    _curves(panels[1], history, "loss", "{:.3f}", 0.2)
    _rates(panels[2], history, schedule)
    notes = ["Train: running mean over augmented images while the weights change."]
    if label_smoothing:
        notes[0] += f" Only this loss includes label smoothing ({label_smoothing:g})."
    if any(epoch.test_accuracy is not None for epoch in history):
        notes.append("Test: measured after training, with the weights saved at each epoch.")
    sheet.write(left, 7.58, "\n".join(notes), **NOTE)
    return sheet


def _curves(axes: Axes, history: History, quantity: str, form: str, least_span: float) -> None:
    """Draw one line for each part of the data that was measured, with its last value at its end."""
    lines: list[tuple[str, str, list[tuple[int, float]]]] = []
    for rank, (part, colour, width) in enumerate(_PARTS):
        values = history.column(f"{part}_{quantity}")
        pairs = zip(history, values, strict=True)
        points = [(epoch.epoch, y) for epoch, y in pairs if y is not None and math.isfinite(y)]
        if not points:
            continue
        lines.append((part, colour, points))
        few = len(points) < max(3, len(values))  # not every epoch was measured: show which
        dots: dict[str, Any] = {"marker": "o" if few else "", "ms": width + 2}
        axes.plot(*zip(*points, strict=True), color=colour, lw=width, label=part, zorder=3 + rank, **dots)
    if not lines:
        return
    _limit(axes, [y for _, _, points in lines for _, y in points], least_span)
    bottom, top = axes.get_ylim()
    inches = axes.get_position().height * float(axes.figure.get_figheight())  # type: ignore[union-attr]
    ends = [points[-1] for _, _, points in lines]
    heights = keep_apart([(y - bottom) / (top - bottom) for _, y in ends], BODY * LINE / 72 / inches)
    for (part, colour, _), (x, y), height in zip(lines, ends, heights, strict=True):
        axes.plot([x], [y], "o", color=colour, ms=5.5, mec=PAPER, mew=1.2, clip_on=False, zorder=8)
        font: dict[str, Any] = {"size": BODY + 1, "weight": "bold"} if part == "test" else {}
        label = f"{part} {form.format(y)}"
        axes.text(1.02, height, label, font, color=colour, transform=axes.transAxes, va="center")


def _limit(axes: Axes, values: Sequence[float], least_span: float) -> None:
    """Set the limits of a curve so that what differs little does not look far apart."""
    low, high = min(values), max(values)
    middle, room = (low + high) / 2, 0.56 * max(high - low, least_span)
    axes.set_ylim(max(middle - room, 0.0) if low >= 0 else middle - room, middle + room)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))


def _rates(axes: Axes, history: History, schedule: Callable[[int], float] | None) -> None:
    if schedule is None:
        epochs = [float(epoch.epoch) for epoch in history]
        rates = [epoch.lr for epoch in history]
    else:
        last = history.epochs[-1]
        epochs = [(step + 1) * last.epoch / last.step for step in range(last.step)]
        rates = [schedule(step) for step in range(last.step)]
    dots: dict[str, Any] = {"marker": "o" if len(rates) < 3 else "", "ms": 4}
    axes.plot(epochs, rates, color=INK, lw=1.5, clip_on=False, label="learning rate", zorder=3, **dots)
    axes.fill_between(epochs, 0, rates, color=WASH, lw=0)
    highest = max(rates)
    axes.set_ylim(0, 1.08 * highest or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=_STEPS))
    end = rates[-1] / axes.get_ylim()[1]
    label = f"last {rates[-1]:.3g}"
    axes.text(1.02, max(end, 0.06), label, va="center", color=MUTED, transform=axes.transAxes)
    if end < 0.6:
        label = f"highest {highest:.3g}\nat epoch {epochs[rates.index(highest)]:.3g}"
        axes.text(1.02, 1.0, label, va="top", color=INK, transform=axes.transAxes)


@in_one_look
def lr_finder(finding: LRFinding) -> Sheet:
    """Draw what a finder measured, the curve by which it judged, and the two rates that it chose.

    Of a range test the loss at each step; of a race the held-out loss of each trial, and the interval between
    which the best rate lies with a probability of 80 %.
    """
    sheet = Sheet(8.4, 5.1)
    raced = finding.method == "race"
    sheet.title("Learning-rate finder", finding.extent, 0.75)
    axes = sheet.area(0.75, 1.05, 7.15, 2.75)
    axes.set_xscale("log")
    shaded = finding.interval or (finding.min_lr, finding.peak_lr)
    axes.axvspan(*shaded, color=BLUE, alpha=0.07, lw=0, zorder=0)
    dots: dict[str, Any] = {"marker": "o", "ms": 6 if raced else 2.2}
    measured, judged = ("held-out loss", "fitted parabola") if raced else ("loss", "smoothed loss")
    axes.plot(finding.rates, finding.losses, color="#b4bcc9", lw=0.9, label=measured, zorder=2, **dots)
    fitted = _parabola(finding) if raced else (finding.rates, finding.smoothed)
    axes.plot(*fitted, color=BLUE, lw=2.6, label=judged, zorder=3)
    rates = [*finding.rates, finding.min_lr, finding.peak_lr]
    axes.set_xlim(min(rates) / 1.25, max(rates) * 1.25)
    axes.set_ylim(*_loss_limits(finding))
    _mark(sheet, axes, {"LRMIN": finding.min_lr, "LRMAX": finding.peak_lr})
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("held-out loss" if raced else "training loss")
    if not raced:
        _show_classic_rules(axes, finding)
    reasons = (f"LRMAX: {finding.peak_because}.", f"LRMIN: {finding.min_because}.")
    lines = [line for reason in reasons for line in textwrap.wrap(reason, 112)]
    sheet.write(0.75, 4.48, "\n".join(lines), **NOTE)
    return sheet


def _parabola(finding: LRFinding) -> tuple[Sequence[float], Sequence[float]]:
    """Return the parabola of a race as a smooth curve between its lowest and its highest rate."""
    if len(finding.rates) < 3:
        return finding.rates, finding.smoothed
    octaves = np.log2(finding.rates)
    along = np.linspace(octaves[0], octaves[-1], 61)
    heights = np.polyval(np.polyfit(octaves, finding.smoothed, 2), along)
    return (2**along).tolist(), heights.tolist()


def _show_classic_rules(axes: Axes, finding: LRFinding) -> None:
    """Mark on a range test's curve what other finders would have answered; the names stand on end."""
    names: dict[str, list[str]] = {}
    for name, rate in classic_rates(finding.rates, finding.smoothed).items():
        names.setdefault(f"{rate:.1e}", []).append(name)
    place: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "bottom", "size": SMALL, "color": MUTED}
    for text, words in names.items():
        axes.axvline(float(text), color=MUTED, lw=0.9, ls=":", zorder=1)
        axes.text(float(text), 0.03, ", ".join(words), transform=axes.get_xaxis_transform(), **place)


def _mark(sheet: Sheet, axes: Axes, rates: dict[str, float]) -> None:
    """Draw a line at each of two rates, the lower first; write its name above, outside the two lines."""
    size, margin = BODY + 1, 0.15
    frame, across = axes.get_position(), float(sheet.get_figwidth())
    low, high = map(math.log, axes.get_xlim())
    labels = [f"{name} {rate:g}" for name, rate in rates.items()]
    widths = [width_of(label, size, "bold") for label in labels]
    starts = []
    for rate, width, is_left in zip(rates.values(), widths, (True, False), strict=True):
        axes.axvline(rate, color=BLUE, lw=1.1, zorder=1)
        x = across * (frame.x0 + frame.width * (math.log(rate) - low) / (high - low))
        starts.append(x - width - 0.05 if is_left else x + 0.05)
    starts = keep_apart(starts, widths[0] + 0.1, margin, across - margin - widths[1])
    for start, label in zip(starts, labels, strict=True):
        sheet.write(start, 0.83, label, size=size, color=BLUE, weight="bold")


def _loss_limits(finding: LRFinding) -> tuple[float, float]:
    """Return limits that the fall of the loss decides; a spike or the final explosion may leave the frame."""
    losses, smoothed = (list(filter(math.isfinite, values)) for values in (finding.losses, finding.smoothed))
    if not losses or not smoothed:
        return 0.0, 1.0
    low, first = min(*losses, *smoothed), smoothed[0]
    fall = max(first - min(smoothed), 0.02 * abs(first), 1e-9)
    high = min(max(*losses, *smoothed), first + 0.6 * fall)
    return max(low, min(smoothed) - 0.5 * fall) - 0.08 * fall, high + 0.08 * fall
