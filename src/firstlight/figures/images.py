"""Figures that show images: augmentations step by step, misclassified images, Grad-CAM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.data.augment import Augmentation, FlipLR, normalise
from firstlight.errors import InputError
from firstlight.figures.style import (
    BLUE,
    BODY,
    DPI,
    INK,
    MUTED,
    SMALL,
    TITLE,
    VERMILLION,
    Sheet,
    fitted,
    in_one_look,
    width_of,
)
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import Heatmaps

_MARGIN = 0.3
_HEAT = "inferno"
_TINY = 7.0


@in_one_look
def augmentations(
    samples: Mapping[str, Tensor],
    augmentations: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> Sheet:
    """Replay what the network saw: a column per image, a row per augmentation, with the numbers drawn.

    samples: `images` (uint8, S×C×H×W), `labels` (int64, S) and for the i-th augmentation its draws,
        `draws_i` (int64, one row per image).
    """
    images, labels = samples["images"], samples["labels"]
    steps = replay(samples, augmentations, mean, std)
    scale = _pixels(max(max(step.shape[2:]) for step in steps), 1.08)
    across, down = (max(step.shape[side] for step in steps) * scale / DPI for side in (3, 2))
    gap, head, row = 0.14, 1.0, down + 0.42
    left = _MARGIN + 1.35
    sheet = Sheet(left + len(images) * (across + gap) - gap + _MARGIN, head + len(steps) * row + 0.1)
    sheet.write(_MARGIN, 0.2, "Augmentations, step by step", size=TITLE, weight="bold")
    sheet.write(
        _MARGIN,
        0.46,
        "Training images as the network saw them in epoch 1, with the numbers that were drawn",
        size=SMALL,
        color=MUTED,
    )
    for place, step in enumerate(steps):
        top = head + place * row
        _name_step(sheet, top, None if not place else augmentations[place - 1])
        high, wide = (side * scale / DPI for side in step.shape[2:])
        for column, image in enumerate(step):
            x = left + column * (across + gap)
            sheet.tile(x, top, wide, high, shown(image))
            if place:
                said = said_of(augmentations[place - 1], samples[f"draws_{place - 1}"][column])
            else:
                said = classes[int(labels[column])]
            said = fitted(said, across + gap - 0.04, SMALL)
            sheet.write(x, top + high + 0.06, said, size=SMALL, color=MUTED if place else INK)
    return sheet


def replay(
    samples: Mapping[str, Tensor],
    augmentations: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
) -> list[Tensor]:
    """Return the images before and after each augmentation, uint8; normalised ones are turned back."""
    missing = [key for key in ("images", "labels", *_draws(augmentations)) if key not in samples]
    if missing:
        raise InputError(f"the augmented samples lack {', '.join(missing)}")
    images = samples["images"]
    steps, raw = [images], True
    for augmentation, key in zip(augmentations, _draws(augmentations), strict=True):
        if raw and augmentation.on_normalised:
            images, raw = normalise(images, mean, std), False
        images = augmentation.apply(images, samples[key])
        steps.append(images if raw else _back(images, mean, std))
    return steps


def _draws(augmentations: Sequence[Augmentation]) -> list[str]:
    return [f"draws_{place}" for place in range(len(augmentations))]


def _back(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    spread, centre = (torch.tensor(list(numbers)).view(1, -1, 1, 1) for numbers in (std, mean))
    return ((images.float() * spread + centre) * 255).round().clamp(0, 255).to(torch.uint8)


def _name_step(sheet: Sheet, top: float, augmentation: Augmentation | None) -> None:
    name = "Original" if augmentation is None else type(augmentation).__name__
    sheet.write(_MARGIN, top, name, size=BODY, weight="bold")
    if augmentation is not None:
        sheet.write(_MARGIN, top + 0.2, "\n".join(settings_of(augmentation)), size=SMALL, color=MUTED)


def settings_of(augmentation: Augmentation) -> list[str]:
    """Return an augmentation's fields in words; a switch is named where it is on."""
    if not dataclasses.is_dataclass(augmentation):
        return []
    values = {field.name: getattr(augmentation, field.name) for field in dataclasses.fields(augmentation)}
    return [
        name if value is True else f"{name} {value}" for name, value in values.items() if value is not False
    ]


def said_of(augmentation: Augmentation, draws: Tensor) -> str:
    """Return what was drawn for one image in words."""
    if isinstance(augmentation, FlipLR):
        return "flipped" if int(draws[0]) else "not flipped"
    return ", ".join(
        f"{name} {value}" for name, value in zip(augmentation.columns, draws.tolist(), strict=True)
    )


@in_one_look
def misclassified(evaluation: Evaluation, images: Tensor, indices: Tensor, count: int = 24) -> Sheet:
    """Show the wrongly classified images of the highest loss, with what was said and what is true.

    images: uint8, M×C×H×W, those kept; indices: int64, M, their places in the evaluated set.
    """
    worst = _worst(evaluation, indices, count)
    if not worst:
        return _nothing("Misclassified images", evaluation)
    scale = _pixels(max(images.shape[2:]), 1.28)
    high, wide = (side * scale / DPI for side in images.shape[2:])
    gap, columns = 0.24, min(6, len(worst))
    row, head = high + 0.6, 1.05
    rows = -(-len(worst) // columns)
    sheet = Sheet(max(2 * _MARGIN + columns * (wide + gap) - gap, 5.4), head + rows * row + 0.02)
    sheet.write(_MARGIN, 0.2, "Misclassified images", size=TITLE, weight="bold")
    sheet.write(
        _MARGIN,
        0.46,
        f"The {len(worst)} of the highest loss, of {len(evaluation.mistakes):,} mistakes",
        size=SMALL,
        color=MUTED,
    )
    sheet.write(_MARGIN, 0.68, "predicted class (confidence)", size=SMALL, color=VERMILLION)
    sheet.write(_MARGIN + 1.95, 0.68, "true class", size=SMALL, color=BLUE)
    for number, (index, place) in enumerate(worst):
        x = _MARGIN + number % columns * (wide + gap)
        y = head + number // columns * row
        sheet.tile(x, y, wide, high, shown(images[place]))
        predicted, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        _say(sheet, x, y + high + 0.07, wide, evaluation, index, predicted, VERMILLION)
        place_in_set = f"#{index}"
        room = wide - width_of(place_in_set, _TINY) - 0.06
        sheet.write(x, y + high + 0.24, fitted(evaluation.classes[true], room, SMALL), size=SMALL, color=BLUE)
        sheet.write(x + wide, y + high + 0.255, place_in_set, size=_TINY, color=MUTED, ha="right")
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
    """Show for the worst mistakes what spoke for the predicted class and what for the true one.

    images, indices: as in `misclassified`. predicted, true: one map for each mistake shown, in that order.
    The two maps of a mistake share one scale, from nothing to the strongest evidence in the pair.
    """
    worst = _worst(evaluation, indices, count)
    if not worst:
        return _nothing("Grad-CAM of mistakes", evaluation)
    if not len(predicted.maps) == len(true.maps) == len(worst):
        raise InputError(
            f"{len(worst)} mistakes need as many maps, not {len(predicted.maps)} and {len(true.maps)}"
        )
    scale = _pixels(max(images.shape[2:]), 1.28)
    high, wide = (side * scale / DPI for side in images.shape[2:])
    gap, between, head, row = 0.1, 0.5, 1.2, high + 0.44
    blocks = min(2, len(worst))
    rows = -(-len(worst) // blocks)
    across = 3 * wide + 2 * gap
    sheet = Sheet(max(2 * _MARGIN + blocks * across + (blocks - 1) * between, 5.4), head + rows * row + 0.55)
    sheet.write(_MARGIN, 0.2, "Grad-CAM of mistakes", size=TITLE, weight="bold")
    grid = "×".join(map(str, predicted.maps.shape[1:]))
    sheet.write(
        _MARGIN,
        0.46,
        f"Evidence at {predicted.endpoint}, {grid}, smoothed for display",
        size=SMALL,
        color=MUTED,
    )
    for block in range(blocks):
        x = _MARGIN + block * (across + between)
        for place, title in enumerate(("image", "for predicted class", "for true class")):
            sheet.write(x + place * (wide + gap), head - 0.24, title, size=SMALL, color=MUTED)
    for number, (index, place) in enumerate(worst):
        x = _MARGIN + number // rows * (across + between)
        y = head + number % rows * row
        image = shown(images[place])
        sheet.tile(x, y, wide, high, image)
        sheet.write(x, y + high + 0.06, f"#{index}", size=SMALL, color=MUTED)
        strongest = max(float(predicted.maps[number].amax()), float(true.maps[number].amax()))
        told = (
            (predicted.maps[number], int(evaluation.predictions[index]), VERMILLION),
            (true.maps[number], int(evaluation.labels[index]), BLUE),
        )
        for column, (heat, label, colour) in enumerate(told, 1):
            left = x + column * (wide + gap)
            _say(sheet, left, y + high + 0.06, wide, evaluation, index, label, colour)
            if float(heat.amax()) > 0:
                sheet.tile(left, y, wide, high, overlay(image, heat / strongest))
            else:
                box = sheet.tile(left, y, wide, high, None)
                box.text(0.5, 0.5, "no positive\nevidence", ha="center", va="center", size=SMALL, color=MUTED)
    _scale(sheet, head + rows * row + 0.12)
    return sheet


def overlay(image: np.ndarray, heat: Tensor) -> np.ndarray:
    """Lay heat, h×w of 0…1, smoothly over a pale grey copy of an H×W×3 image."""
    smooth = F.interpolate(
        heat[None, None].float(), size=image.shape[:2], mode="bilinear", align_corners=False
    )
    strength = smooth[0, 0].numpy()[..., None]
    grey = 90 + 0.6 * (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    colours = 255 * matplotlib.colormaps[_HEAT](strength[..., 0])[..., :3]
    mixed = grey * (1 - _opacity(strength)) + colours * _opacity(strength)
    return np.asarray(mixed.round().astype(np.uint8))


def _opacity(strength: np.ndarray) -> np.ndarray:
    return np.asarray(0.85 * strength**0.75)


def _scale(sheet: Sheet, y: float) -> None:
    """Draw the scale that the two maps of a pair share, as it looks over middle grey."""
    steps = np.linspace(0, 1, 256)
    grey = np.full((1, 256, 3), 128, dtype=np.uint8)
    bar = overlay(grey, torch.from_numpy(steps)[None])
    sheet.tile(_MARGIN, y + 0.03, 1.6, 0.12, bar)
    sheet.write(_MARGIN + 1.7, y, "evidence: none to the strongest in the pair", size=SMALL, color=MUTED)


def _worst(evaluation: Evaluation, indices: Tensor, count: int) -> list[tuple[int, int]]:
    """Return (index in the set, place among the kept images) of the worst mistakes that have a picture."""
    places = {index: place for place, index in enumerate(indices.tolist())}
    kept = [(index, places[index]) for index in evaluation.mistakes.tolist() if index in places]
    return kept[:count]


def _say(
    sheet: Sheet,
    x: float,
    y: float,
    width: float,
    evaluation: Evaluation,
    index: int,
    label: int,
    colour: str,
) -> None:
    """Write a class and the probability that it got; a long name is shortened, the number never."""
    share = f" ({_percent(float(evaluation.probabilities[index, label]))})"
    name = fitted(evaluation.classes[label], width - width_of(share, SMALL), SMALL)
    sheet.write(x, y, name + share, size=SMALL, color=colour)


def _percent(share: float) -> str:
    """Round to whole percents, but never to nothing or to all."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _nothing(title: str, evaluation: Evaluation) -> Sheet:
    sheet = Sheet(6.4, 1.3)
    sheet.write(_MARGIN, 0.2, title, size=TITLE, weight="bold")
    total = len(evaluation.labels)
    said = (
        "No pictures of them are kept."
        if len(evaluation.mistakes)
        else f"No mistakes: all {total:,} images were classified right."
    )
    sheet.write(_MARGIN, 0.6, said, color=INK)
    return sheet


def _pixels(side: int, inches: float) -> float:
    """Return how many pixels of the figure one pixel of an image takes; whole, so that all are as wide."""
    exact = inches * DPI / side
    return float(round(exact)) if exact >= 1 else exact


def shown(image: Tensor) -> np.ndarray:
    """Return a uint8 C×H×W image as H×W×3; one channel becomes grey."""
    colours = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return colours.permute(1, 2, 0).contiguous().numpy()
