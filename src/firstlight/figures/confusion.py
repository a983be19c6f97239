"""The confusion matrix as a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator

from firstlight.figures.style import (
    BODY,
    GRID,
    INK,
    MUTED,
    NOTE,
    PAPER,
    SMALL,
    WASH,
    Sheet,
    fitted,
    in_one_look,
    width_of,
)
from firstlight.insight.evaluation import Evaluation

MOST_NUMBERS = 25
"""Classes beyond which a confusion matrix shows colours without numbers."""
_MISTAKES = LinearSegmentedColormap.from_list("mistakes", [PAPER, "#f3b183", "#a83c00"]).with_extremes(
    bad=WASH
)


@in_one_look
def confusion(evaluation: Evaluation) -> Sheet:
    """Draw how often each true class was predicted as each other; right answers stay grey, so mistakes show.

    Colours are shares of the true class's images, numbers are counts.
    """
    counts = evaluation.confusion.numpy()
    number = len(evaluation.classes)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    mistakes = np.where(np.eye(number, dtype=bool), np.nan, shares)
    cell = min(max(0.56, 2.2 / number), max(7.2 / number, 0.085))
    size = min(BODY, 72 * cell / 1.25)
    names = [fitted(name, 1.5, size) for name in evaluation.classes]
    label = max(width_of(name, size) for name in names)
    side, left, top = cell * number, label + 0.75, 1.2
    angle = 0 if label < cell - 0.08 else 45 if number <= MOST_NUMBERS else 90
    below = {0: 0.35, 45: 0.75 * label + 0.25, 90: label + 0.2}[angle]
    sheet = Sheet(max(left + side + 2.1, 5.2), max(top + side + below + 0.55, 3.2))
    wrong = int(totals.sum()) - evaluation.right
    tta = ", with test-time augmentation" if evaluation.tta else ""
    sheet.title("Confusion matrix", f"{wrong:,} mistakes on {int(totals.sum()):,} images{tta}")
    axes = sheet.area(left, top, side, side)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    strongest = float(np.nanmax(mistakes)) if wrong else 1.0
    image = axes.imshow(np.ma.masked_invalid(mistakes), cmap=_MISTAKES, vmin=0, vmax=strongest, aspect="auto")
    edges = np.arange(number + 1) - 0.5
    for lines in (axes.hlines, axes.vlines):
        lines(edges, -0.5, number - 0.5, color=GRID, lw=0.8 if number <= MOST_NUMBERS else 0.3, zorder=2)
    axes.set_xticks(range(number), names, rotation=angle)
    if angle == 45:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), names)
    axes.tick_params(length=0, pad=5, labelsize=size, labelcolor=INK)
    sheet.write(left + side / 2, top + side + below + 0.12, "predicted class", color=MUTED, ha="center")
    axes.set_ylabel("true class", labelpad=10)
    if number <= MOST_NUMBERS:
        _numbers(axes, counts, shares / strongest, min(BODY, 72 * cell / 3.2))
    _recall(axes, shares.diagonal(), totals, size)
    bar = sheet.area(left + side + 1.05, top, 0.13, min(side, 2.6))
    scale = sheet.colorbar(image, cax=bar)
    scale.outline.set_visible(False)
    scale.locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    scale.formatter = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
    scale.update_ticks()
    bar.grid(False)
    bar.tick_params(length=0, labelsize=SMALL)
    sheet.write(left + side + 1.05, top - 0.4, "share of the\ntrue class", **NOTE)
    return sheet


def _numbers(axes: Axes, counts: np.ndarray, strength: np.ndarray, size: float) -> None:
    """Write each count into its cell, light on dark cells; zeros stay empty."""
    for row, column in np.argwhere(counts).tolist():
        colour = MUTED if row == column else PAPER if strength[row, column] > 0.78 else INK
        count, centred = str(counts[row, column]), {"ha": "center", "va": "center_baseline"}
        axes.text(column, row, count, centred, size=size, color=colour)


def _recall(axes: Axes, shares: np.ndarray, totals: np.ndarray, size: float) -> None:
    """Write beside each row the recall of its class."""
    edge = len(shares) - 0.5
    beside: dict[str, Any] = {"textcoords": "offset points"}
    for row, (share, total) in enumerate(zip(shares.tolist(), totals.tolist(), strict=True)):
        recall = f"{100 * share:.1f}%" if total else "no images"
        axes.annotate(recall, (edge, row), (8, 0), va="center_baseline", size=size, color=INK, **beside)
    axes.annotate("recall", (edge, -0.5), (8, 6), va="bottom", **NOTE, **beside)
