"""Misclassified images and their Grad-CAM, as figures."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.figures.style import (
    BLUE,
    DPI,
    INK,
    MARGIN,
    MUTED,
    NOTE,
    SMALL,
    VERMILLION,
    Sheet,
    as_picture,
    dots_a_pixel,
    fitted,
    in_one_look,
    width_of,
)
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import Heatmaps

HEAT = matplotlib.colormaps["inferno"]
"""Colours of evidence."""
_TINY = 7.0


@in_one_look
def misclassified(evaluation: Evaluation, images: Tensor, indices: Tensor, count: int = 24) -> Sheet:
    """Show the wrongly classified images with the highest loss, each with its predicted and its true class.

    images: uint8, M×C×H×W, the saved ones; indices: int64, M, their indices in the evaluated set.
    """
    worst = _worst(evaluation, indices, count)
    if not worst:
        return _without_images("Misclassified images", evaluation)
    scale = dots_a_pixel(max(images.shape[2:]), 1.28) / DPI
    height, width = (scale * side for side in images.shape[2:])
    gap, columns, head, row = 0.24, min(6, len(worst)), 1.05, height + 0.6
    rows = -(-len(worst) // columns)
    sheet = Sheet(max(2 * MARGIN + columns * (width + gap) - gap, 5.4), head + rows * row + 0.02)
    note = f"The {len(worst)} with the highest loss, of {len(evaluation.mistakes):,} mistakes"
    sheet.title("Misclassified images", note)
    sheet.write(MARGIN, 0.68, "predicted class (confidence)", size=SMALL, color=VERMILLION)
    sheet.write(MARGIN + 1.95, 0.68, "true class", size=SMALL, color=BLUE)
    for number, (index, saved) in enumerate(worst):
        x, y = MARGIN + number % columns * (width + gap), head + number // columns * row
        sheet.tile(x, y, width, height, as_picture(images[saved]))
        predicted, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        prediction = _class(evaluation, index, predicted, width)
        sheet.write(x, y + height + 0.07, prediction, size=SMALL, color=VERMILLION)
        name = fitted(evaluation.classes[true], width - width_of(f"#{index}", _TINY) - 0.06, SMALL)
        sheet.write(x, y + height + 0.24, name, size=SMALL, color=BLUE)
        sheet.write(x + width, y + height + 0.255, f"#{index}", size=_TINY, color=MUTED, ha="right")
    return sheet


@in_one_look
def gradcam(
    evaluation: Evaluation,
    images: Tensor,
    indices: Tensor,
    predicted: Heatmaps,
    true: Heatmaps,
    count: int = 8,
) -> Sheet:
    """Show for the worst mistakes the evidence for the predicted class and for the true one.

    images, indices: as in `misclassified`. predicted, true: one map for each mistake shown, in that order.
    The two maps of a mistake share one scale, from none to the strongest evidence in the pair.
    """
    worst = _worst(evaluation, indices, count)
    if not worst:
        return _without_images("Grad-CAM of mistakes", evaluation)
    if not len(predicted.maps) == len(true.maps) == len(worst):
        raise InputError(
            f"{len(worst)} mistakes need as many maps, not {len(predicted.maps)} and {len(true.maps)}"
        )
    scale = dots_a_pixel(max(images.shape[2:]), 1.28) / DPI
    height, width = (scale * side for side in images.shape[2:])
    gap, between, head, row = 0.1, 0.5, 1.2, height + 0.44
    blocks = min(2, len(worst))
    rows = -(-len(worst) // blocks)
    across = 3 * width + 2 * gap
    sheet = Sheet(max(2 * MARGIN + blocks * across + (blocks - 1) * between, 5.4), head + rows * row + 0.55)
    grid = "×".join(map(str, predicted.maps.shape[1:]))
    sheet.title("Grad-CAM of mistakes", f"Evidence at {predicted.endpoint}, {grid}, smoothed for display")
    for block in range(blocks):
        for column, heading in enumerate(("image", "for predicted class", "for true class")):
            x = MARGIN + block * (across + between) + column * (width + gap)
            sheet.write(x, head - 0.24, heading, **NOTE)
    for number, (index, saved) in enumerate(worst):
        x, y = MARGIN + number // rows * (across + between), head + number % rows * row
        image = as_picture(images[saved])
        sheet.tile(x, y, width, height, image)
        sheet.write(x, y + height + 0.06, f"#{index}", **NOTE)
        pair = (
            (predicted.maps[number], int(evaluation.predictions[index]), VERMILLION),
            (true.maps[number], int(evaluation.labels[index]), BLUE),
        )
        strongest = max(float(heat.amax()) for heat, _, _ in pair)
        for heat, label, colour in pair:
            x += width + gap
            name = _class(evaluation, index, label, width)
            sheet.write(x, y + height + 0.06, name, size=SMALL, color=colour)
            if float(heat.amax()) > 0:
                sheet.tile(x, y, width, height, overlay(image, heat / strongest))
            else:
                box = sheet.tile(x, y, width, height, None)
                box.text(0.5, 0.5, "no positive\nevidence", ha="center", va="center", **NOTE)
    _scale(sheet, head + rows * row + 0.12)
    return sheet


def overlay(image: np.ndarray, heat: Tensor) -> np.ndarray:
    """Lay heat, h×w of 0…1, smoothly over a pale grey copy of an H×W×3 image."""
    smooth = F.interpolate(heat[None, None].float(), size=image.shape[:2], mode="bilinear")
    strength = smooth[0, 0].numpy()[..., None]
    grey = 90 + 0.6 * (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    colours = 255 * HEAT(strength[..., 0])[..., :3]
    opacity = 0.85 * strength**0.75
    return np.asarray((grey * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def _scale(sheet: Sheet, y: float) -> None:
    """Draw the scale that the two maps of a pair share, as it looks over middle grey."""
    grey = np.full((1, 256, 3), 128, dtype=np.uint8)
    sheet.tile(MARGIN, y + 0.03, 1.6, 0.12, overlay(grey, torch.linspace(0, 1, 256)[None]))
    sheet.write(MARGIN + 1.7, y, "evidence, from none to the strongest of the pair", **NOTE)


def _worst(evaluation: Evaluation, indices: Tensor, count: int) -> list[tuple[int, int]]:
    """Return for the worst mistakes that have an image: its index in the set, and in the saved images."""
    rows = {index: row for row, index in enumerate(indices.tolist())}
    return [(index, rows[index]) for index in evaluation.mistakes.tolist() if index in rows][:count]


def _class(evaluation: Evaluation, index: int, label: int, width: float) -> str:
    """Return a class with its probability for an image; a long name is shortened, the number never."""
    share = f" ({_percent(float(evaluation.probabilities[index, label]))})"
    return fitted(evaluation.classes[label], width - width_of(share, SMALL), SMALL) + share


def _percent(share: float) -> str:
    """Round to whole percents, but never to nothing or to all."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _without_images(title: str, evaluation: Evaluation) -> Sheet:
    sheet = Sheet(6.4, 1.3)
    sheet.title(title)
    all_right = f"No mistakes: all {len(evaluation.labels):,} images are classified right."
    line = "Images of the mistakes are not kept." if len(evaluation.mistakes) else all_right
    sheet.write(MARGIN, 0.6, line, color=INK)
    return sheet
