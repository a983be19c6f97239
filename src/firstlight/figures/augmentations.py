"""Augmentations, replayed step by step, as a figure and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.data.augment import Augmentation, normalise
from firstlight.errors import InputError
from firstlight.figures.style import (
    BODY,
    DPI,
    INK,
    MARGIN,
    MUTED,
    NOTE,
    SMALL,
    Sheet,
    as_picture,
    dots_a_pixel,
    fitted,
    in_one_look,
)


@dataclass(frozen=True, eq=False)
class Step:
    """Some images after one augmentation, or before the first.

    name, settings: of the augmentation. images: uint8, S×C×H×W. captions: one an image: what was drawn for
    it, or before the first augmentation its class.
    """

    name: str
    settings: Sequence[str]
    images: Tensor
    captions: Sequence[str]


def replay(
    samples: Mapping[str, Tensor],
    augmentations: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> list[Step]:
    """Return the images as they were, then after each augmentation; normalised ones are turned back.

    samples: `images` (uint8, S×C×H×W), `labels` (int64, S) and for the i-th augmentation its draws,
        `draws_i` (int64, one row an image).
    """
    keys = [f"draws_{number}" for number in range(len(augmentations))]
    missing = [key for key in ("images", "labels", *keys) if key not in samples]
    if missing:
        raise InputError(f"the augmented samples lack {', '.join(missing)}")
    images, normalised = samples["images"], False
    steps = [Step("Original", (), images, [classes[label] for label in samples["labels"].tolist()])]
    for augmentation, key in zip(augmentations, keys, strict=True):
        if augmentation.on_normalised and not normalised:
            images, normalised = normalise(images, mean, std), True
        images = augmentation.apply(images, samples[key])
        pixels = _as_pixels(images, mean, std) if normalised else images
        captions = [caption(augmentation.columns, row) for row in samples[key].tolist()]
        steps.append(Step(type(augmentation).__name__, _settings(augmentation), pixels, captions))
    return steps


def _as_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    scale, centre = (torch.tensor(list(numbers)).view(1, -1, 1, 1) for numbers in (std, mean))
    return ((images.float() * scale + centre) * 255).round().clamp(0, 255).to(torch.uint8)


def _settings(augmentation: Augmentation) -> list[str]:
    """Return an augmentation's fields in words; a switch is named where it is on."""
    fields = vars(augmentation).items()
    return [name if value is True else f"{name} {value}" for name, value in fields if value is not False]


def caption(columns: Sequence[str], draws: Sequence[int]) -> str:
    """Return what was drawn for one image: "top 3, left 7", or for a single column "not flipped"."""
    if len(columns) == 1 and columns[0].endswith("ed") and draws[0] in (0, 1):
        return columns[0] if draws[0] else f"not {columns[0]}"
    return ", ".join(f"{name} {value}" for name, value in zip(columns, draws, strict=True))


@in_one_look
def augmentations(
    samples: Mapping[str, Tensor],
    augmentations: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> Sheet:
    """Draw what the network saw: each column is an image, each row a step, with the numbers drawn for it.

    samples: as for `replay`.
    """
    steps = replay(samples, augmentations, mean, std, classes)
    scale = dots_a_pixel(max(max(step.images.shape[2:]) for step in steps), 1.08) / DPI
    height, width = (scale * max(step.images.shape[side] for step in steps) for side in (2, 3))
    gap, head, left, row = 0.14, 1.0, MARGIN + 1.35, height + 0.42
    columns = len(samples["images"])
    sheet = Sheet(left + columns * (width + gap) - gap + MARGIN, head + len(steps) * row + 0.1)
    sheet.title("Augmentations, step by step", "Training images in epoch 1, with the numbers drawn for each")
    for number, step in enumerate(steps):
        top = head + number * row
        sheet.write(MARGIN, top, step.name, size=BODY, weight="bold")
        sheet.write(MARGIN, top + 0.2, "\n".join(step.settings), **NOTE)
        down, across = (scale * side for side in step.images.shape[2:])
        for column, (image, text) in enumerate(zip(step.images, step.captions, strict=True)):
            x = left + column * (width + gap)
            sheet.tile(x, top, across, down, as_picture(image))
            line = fitted(text, width + gap - 0.04, SMALL)
            sheet.write(x, top + down + 0.06, line, size=SMALL, color=MUTED if number else INK)
    return sheet
