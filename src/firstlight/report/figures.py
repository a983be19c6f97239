"""Figures from results: each takes plain values and returns a figure that no pyplot knows of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from firstlight.insight.evaluation import Evaluation
from firstlight.report.style import BLUE, GREEN, INK, ORANGE, Figure, figure_of
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

_WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fbd5bd", ORANGE, "#7a2f00"])


def learning_curves(history: History, schedule: Callable[[int], float] | None = None) -> Figure:
    """Loss, accuracy and learning rate by epoch; training is a running mean over augmented batches."""
    epochs = [epoch.epoch for epoch in history]
    series = [("train", BLUE, "training, augmented")]
    if any(epoch.validation_accuracy is not None for epoch in history):
        series.append(("validation", GREEN, "validation"))
    if any(epoch.test_accuracy is not None for epoch in history):
        series.append(("test", ORANGE, "test, scored afterwards"))
    with figure_of(9, 6.4) as figure:
        top: Axes
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
        for axes, quantity in ((top, "accuracy"), (middle, "loss")):
            for key, colour, label in series:
                values = [np.nan if v is None else v for v in history.column(f"{key}_{quantity}")]
                axes.plot(epochs, values, color=colour, marker="o", markersize=3, linewidth=1.8, label=label)
            axes.set_title(quantity.capitalize())
        top.yaxis.set_major_formatter(PercentFormatter(1))
        top.legend(frameon=False, loc="lower right")
        last = history.epochs[-1]
        if last.test_accuracy is not None:
            top.annotate(
                f"{last.test_accuracy:.2%}",
                (last.epoch, last.test_accuracy),
                xytext=(0, 7),
                textcoords="offset points",
                ha="right",
                color=ORANGE,
                fontweight="bold",
            )
            top.margins(y=0.12)
        if schedule is None:
            bottom.plot(epochs, history.column("lr"), color=INK, marker="o", markersize=3)
        else:
            per_epoch = last.step / last.epoch
            steps = np.unique(np.linspace(0, last.step - 1, 600).round().astype(int))
            bottom.plot((steps + 1) / per_epoch, [schedule(int(step)) for step in steps], color=INK)
        bottom.set_ylim(bottom=0)
        bottom.set_title("Learning rate")
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def lr_finder(finding: LRFinding) -> Figure:
    """The range test: raw and smoothed loss over the rate, with LRMIN and LRMAX."""
    with figure_of(9, 4.2) as figure:
        axes = figure.subplots()
        axes.plot(
            finding.rates, finding.losses, color=BLUE, alpha=0.3, linewidth=1, label="loss of each step"
        )
        axes.plot(finding.rates, finding.smoothed, color=BLUE, linewidth=2.2, label="smoothed")
        axes.set_xscale("log")
        low, high = min(finding.smoothed), max(finding.smoothed)
        axes.set_ylim(low - 0.35 * (high - low), high + 0.35 * (high - low))
        axes.axvspan(finding.min_lr, finding.peak_lr, color=GREEN, alpha=0.08, linewidth=0)
        for rate, name, side in ((finding.min_lr, "LRMIN", "left"), (finding.peak_lr, "LRMAX", "right")):
            axes.axvline(rate, color=GREEN, linewidth=1.4)
            axes.annotate(
                f"{name} {rate:g}",
                (rate, 0.04),
                xycoords=("data", "axes fraction"),
                xytext=(5 if side == "left" else -5, 0),
                textcoords="offset points",
                ha=side,
                color=GREEN,
                fontweight="bold",
            )
        axes.set_title(f"Learning-rate range test, {len(finding.rates)} steps on a copy")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.legend(frameon=False, loc="upper left")
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Counts by true and predicted class; colour marks mistakes as a share of the true class."""
    counts = evaluation.confusion.numpy()
    classes, size = evaluation.classes, len(evaluation.classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(size, dtype=bool), np.nan, shares)
    side = min(4.2 + 0.42 * size, 14)
    with figure_of(side + 1, side) as figure:
        axes = figure.subplots()
        axes.set_facecolor("#eef1f4")
        top = max(float(np.nanmax(wrong)) if size > 1 else 0.0, 0.01)
        picture = axes.imshow(wrong, cmap=_WRONG, vmin=0, vmax=top)
        axes.grid(False)
        few = size <= 20
        for true, said in np.ndindex(size, size) if few else ():
            if counts[true, said]:
                light = true != said and wrong[true, said] > 0.6 * top
                weight = "bold" if true == said else "normal"
                axes.text(
                    said,
                    true,
                    f"{counts[true, said]:,}",
                    ha="center",
                    va="center",
                    fontsize=9 if size <= 12 else 7,
                    fontweight=weight,
                    color="white" if light else INK,
                )
        if few:
            axes.set_xticks(range(size), classes, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(size), classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"{len(evaluation.mistakes):,} mistakes among {len(evaluation.labels):,} images")
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, format=PercentFormatter(1, decimals=0))
        bar.set_label("mistakes, share of the true class")
        bar.outline.set_visible(False)
    return figure
