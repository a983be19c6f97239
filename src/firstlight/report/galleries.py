"""Figures that show images: augmented samples, mistakes, and what the network looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from firstlight.data.augment import Augmentation, Cutout, FlipLR, normalise
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import Heatmaps
from firstlight.report.style import QUIET, Figure, figure_of


def augmentations(
    samples: Mapping[str, Tensor],
    parts: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> Figure:
    """Real draws, step by step: a column for each image, a row for each augmentation in its order.

    samples: `images` uint8 S×C×H×W, `labels` int64 S, and `draws_0`, `draws_1`, … one per augmentation.
    """
    images, rows = samples["images"], [(samples["images"], "original", [""] * len(samples["images"]))]
    for place, part in enumerate(parts):
        draws = samples[f"draws_{place}"]
        if part.on_normalised and not images.is_floating_point():
            images = normalise(images, mean, std)
        images = part.apply(images, draws)
        shown = _to_uint8(images, mean, std) if images.is_floating_point() else images
        rows.append((shown, _title(part), [_drawn(part, row) for row in draws.tolist()]))
    count = len(samples["images"])
    with figure_of(1.35 * count + 0.9, 1.62 * len(rows) + 0.3) as figure:
        grid = figure.subplots(len(rows), count, squeeze=False)
        for row, (pictures, title, words) in zip(grid, rows, strict=True):
            for column, axes in enumerate(row):
                _show(axes, pictures[column])
                axes.set_xlabel(words[column], fontsize=8, color=QUIET, labelpad=2)
            row[0].set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
        for axes, label in zip(grid[0], samples["labels"].tolist(), strict=True):
            axes.set_title(classes[label], fontsize=9, loc="center")
    return figure


def _title(part: Augmentation) -> str:
    return {"Crop": "crop", "FlipLR": "flip", "Cutout": "cutout"}.get(
        type(part).__name__, type(part).__name__
    )


def _drawn(part: Augmentation, draw: Sequence[int]) -> str:
    if isinstance(part, FlipLR):
        return "flipped" if draw[0] else "as it was"
    if isinstance(part, Cutout):
        return f"row {draw[0]}, column {draw[1]}"
    return ", ".join(f"{name} {value}" for name, value in zip(part.columns, draw, strict=True))


def _to_uint8(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (std, mean))
    return ((images.float() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)


def _show(axes: Axes, image: Tensor) -> None:
    """Draw a uint8 C×H×W image, its pixels crisp."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", interpolation="nearest")
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def misclassified(evaluation: Evaluation, images: Tensor, indices: Tensor, count: int = 24) -> Figure:
    """The mistakes with the highest loss. images: uint8 M×C×H×W, kept for the test images `indices`."""
    shown = _kept(evaluation, indices)[:count]
    if not shown:
        return _nothing("No mistakes: every image was classified rightly.")
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    with figure_of(1.45 * columns, 2.0 * rows + 0.4) as figure:
        figure.suptitle(
            f"The {len(shown)} mistakes with the highest loss, of {len(evaluation.mistakes):,}",
            fontsize=11,
            fontweight="bold",
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_visible(False)
        for axes, (place, index) in zip(grid, shown, strict=False):
            axes.set_visible(True)
            _show(axes, images[place])
            axes.set_xlabel(_verdict(evaluation, index), fontsize=8, labelpad=3, linespacing=1.25)
    return figure


def gradcam(
    evaluation: Evaluation,
    images: Tensor,
    indices: Tensor,
    predicted: Heatmaps,
    true: Heatmaps,
    count: int = 8,
) -> Figure:
    """For each mistake the image, what spoke for the predicted class, and what for the true one.

    The i-th maps belong to the i-th mistake shown; each pair shares one scale, on the native grid.
    """
    shown = _kept(evaluation, indices)[: min(count, len(predicted.maps))]
    if not shown:
        return _nothing("No mistakes, so there is nothing to explain.")
    grid_size = "×".join(map(str, predicted.maps.shape[1:]))
    with figure_of(1.5 * len(shown) + 1.2, 5.6) as figure:
        figure.suptitle(
            f"Grad-CAM of the worst mistakes, at {predicted.endpoint} ({grid_size})",
            fontsize=11,
            fontweight="bold",
        )
        grid = figure.subplots(3, len(shown), squeeze=False)
        drawn = None
        for column, (place, index) in enumerate(shown):
            top = max(float(predicted.maps[column].max()), float(true.maps[column].max()), 1e-12)
            _show(grid[0, column], images[place])
            grid[0, column].set_xlabel(_verdict(evaluation, index), fontsize=8, labelpad=3)
            for row, maps in ((1, predicted), (2, true)):
                axes = grid[row, column]
                drawn = _overlay(axes, images[place], maps.maps[column], top) or drawn
                axes.set_xlabel(evaluation.classes[int(maps.targets[column])], fontsize=8, labelpad=3)
        for row, words in enumerate(("image", "spoke for\nthe prediction", "spoke for\nthe truth")):
            grid[row, 0].set_ylabel(words, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=grid[1:], shrink=0.7, ticks=[0, 1])
            bar.ax.set_yticklabels(["none", "most\nof the pair"], fontsize=8)
            bar.outline.set_visible(False)
    return figure


def _overlay(axes: Axes, image: Tensor, heat: Tensor, top: float) -> Any:
    """Lay a native-grid map over a grey image; where nothing spoke for the class, say so."""
    grey = image.float().mean(0, keepdim=True).to(torch.uint8)
    _show(axes, grey)
    if float(heat.max()) <= 0:
        axes.images[0].set_alpha(0.25)
        axes.text(
            0.5, 0.5, "no positive\nevidence", transform=axes.transAxes, ha="center", va="center", fontsize=8
        )
        return None
    height, width = image.shape[1:]
    return axes.imshow(
        heat.numpy() / top,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.6,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )


def _kept(evaluation: Evaluation, indices: Tensor) -> list[tuple[int, int]]:
    """List (place among the kept images, place in the test set) of kept mistakes, the highest loss first."""
    places = {index: place for place, index in enumerate(indices.tolist())}
    return [(places[index], index) for index in evaluation.mistakes.tolist() if index in places]


def _verdict(evaluation: Evaluation, index: int) -> str:
    said, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
    confidence = float(evaluation.probabilities[index, said])
    return f"{evaluation.classes[said]} {confidence:.0%}\nis {evaluation.classes[true]}"


def _nothing(words: str) -> Figure:
    with figure_of(7, 1.2) as figure:
        figure.text(0.5, 0.5, words, ha="center", va="center")
    return figure
