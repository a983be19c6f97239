"""Augmentations: frozen values that `sample` their parameters on the CPU and `apply` them to a whole batch.

Draws are int64 tensors with one row an image, so they can be saved, shown and replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError

Stream = Callable[[int], torch.Generator]
"""From an epoch, counted from 0, to the random stream of one augmentation in it."""


class Augmentation(Protocol):
    """What every augmentation offers; a subclass inherits what it leaves out."""

    columns: ClassVar[tuple[str, ...]]
    """Names of the columns of its draws."""

    on_normalised: ClassVar[bool] = False
    """Whether it takes normalised images (floating point, mean 0) instead of raw ones (uint8)."""

    @property
    def mirrors(self) -> bool:
        """Whether training shows mirror images, so that test-time augmentation may show them too."""
        return False

    @property
    def reach(self) -> int:
        """Pixels by which it moves an image at most; test-time augmentation moves it no further."""
        return 0

    def sample(self, order: Tensor, height: int, width: int, stream: Stream, epoch: int) -> Tensor:
        """Draw the parameters of an epoch: int64, len(order)×len(columns); row i is for image `order[i]`.

        order: int64, the numbers of all images, height×width each, in the order of the epoch.
        """
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the N×C×H×W images changed as the N draws say."""
        ...

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what `apply` returns."""
        return height, width


def _corners(tops: int, lefts: int, count: int, generator: torch.Generator) -> Tensor:
    draws = [torch.randint(number, (count,), generator=generator) for number in (tops, lefts)]
    return torch.stack(draws, dim=1)


@dataclass(frozen=True)
class Crop(Augmentation):
    """A random window of size×size from the image padded by `pad` pixels on each side.

    size: side of the window, in pixels; none keeps height and width of the image.
    pad: margin on each side, in pixels.
    padding: content of the margin, "reflect" (the image mirrored at its edge) or "zero" (black).
    """

    size: int | None
    pad: int = 4
    padding: str = "reflect"

    columns: ClassVar[tuple[str, ...]] = ("top", "left")

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 1) or self.pad < 0:
            raise InputError(f"a crop needs size ≥ 1 and pad ≥ 0, not {self.size} and {self.pad}")
        if self.padding not in ("reflect", "zero"):
            raise InputError(f"unknown padding {self.padding!r}", 'Known: "reflect", "zero".')

    @property
    def reach(self) -> int:
        return self.pad

    def sample(self, order: Tensor, height: int, width: int, stream: Stream, epoch: int) -> Tensor:
        rows, columns = self.output_size(height, width)
        tops, lefts = height + 2 * self.pad - rows + 1, width + 2 * self.pad - columns + 1
        if tops < 1 or lefts < 1 or self.pad >= min(height, width):
            crop = f"{rows}×{columns} from {height}×{width} padded by {self.pad}"
            raise InputError(f"cannot crop {crop}")
        return _corners(tops, lefts, len(order), stream(epoch))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        if self.padding == "zero":
            padded = F.pad(images, (self.pad,) * 4)
        else:
            rows, columns = (self._mirror(side, images.device) for side in images.shape[2:])
            padded = images.index_select(2, rows).index_select(3, columns)
        height, width = self.output_size(*images.shape[2:])
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        every = torch.arange(len(images), device=images.device)
        return windows[every, :, draws[:, 0], draws[:, 1]]

    def _mirror(self, side: int, device: torch.device) -> Tensor:
        """Indices of a side of `side` pixels and its mirrored margins; the edge pixel is not repeated."""
        index = torch.arange(-self.pad, side + self.pad, device=device).abs()
        return (side - 1) - ((side - 1) - index).abs()

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return (height, width) if self.size is None else (self.size, self.size)


@dataclass(frozen=True)
class FlipLR(Augmentation):
    """Mirrors the image left to right, with probability one half.

    alternate: mirror the images that were not mirrored in the epoch before. The coin is tossed for the first
        epoch only, so two epochs show every image both ways (Jordan 2024, arXiv 2404.00498, section 3.6).
    flip: on, off (mirrors none), or auto, by which a recipe asks the training images first; else it is on.
    """

    alternate: bool = False
    flip: str = "on"

    columns: ClassVar[tuple[str, ...]] = ("flipped",)

    def __post_init__(self) -> None:
        if self.flip not in ("on", "off", "auto"):
            raise InputError(f"flip must be on, off or auto, not {self.flip!r}")

    @property
    def mirrors(self) -> bool:
        return self.flip != "off"

    def sample(self, order: Tensor, height: int, width: int, stream: Stream, epoch: int) -> Tensor:
        if self.flip == "off":
            return torch.zeros(len(order), 1, dtype=torch.int64)
        if not self.alternate:
            return torch.randint(2, (len(order), 1), generator=stream(epoch))
        first = torch.randint(2, (len(order), 1), generator=stream(0))
        return (first[order] + epoch) % 2

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where(draws.view(-1, 1, 1, 1).bool(), images.flip(3), images)


@dataclass(frozen=True)
class Cutout(Augmentation):
    """A square of size×size, always and wholly inside the image, filled with the mean of the set.

    It is cut after normalisation, where the mean is exactly zero. After DeVries & Taylor 2017
    (arXiv 1708.04552), section 3, whose squares may also reach over the edge.

    size: side of the square, in pixels.
    """

    size: int

    on_normalised: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("top", "left")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"a cutout needs size ≥ 1, not {self.size}")

    def sample(self, order: Tensor, height: int, width: int, stream: Stream, epoch: int) -> Tensor:
        if self.size > min(height, width):
            raise InputError(f"a cutout of {self.size}×{self.size} does not fit into {height}×{width}")
        return _corners(height - self.size + 1, width - self.size + 1, len(order), stream(epoch))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        top, left = draws[:, 0].view(-1, 1, 1, 1), draws[:, 1].view(-1, 1, 1, 1)
        row = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
        column = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
        rows = (row >= top) & (row < top + self.size)
        columns = (column >= left) & (column < left + self.size)
        # `masked_fill` would lose the channels-last layout.
        return torch.where(rows & columns, torch.zeros((), dtype=images.dtype, device=images.device), images)


@dataclass(frozen=True)
class Jitter(Augmentation):
    """Changes contrast and brightness of each image, by amounts that are drawn for it.

    A normalised image x becomes (1 + c) x + b: the contrast changes about the mean of the set.

    contrast: the largest |c|, below 1.
    brightness: the largest |b|, in standard deviations of the set's pixels.
    """

    contrast: float
    brightness: float

    on_normalised: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("contrast ‰", "brightness ‰")

    def __post_init__(self) -> None:
        if not 0 <= self.contrast < 1:
            raise InputError(f"contrast must be in [0, 1), not {self.contrast:g}")
        if not 0 <= self.brightness < math.inf:
            raise InputError(f"brightness must not be negative, but is {self.brightness:g}")

    def sample(self, order: Tensor, height: int, width: int, stream: Stream, epoch: int) -> Tensor:
        """Draw thousandths of the largest changes."""
        return torch.randint(-1000, 1001, (len(order), 2), generator=stream(epoch))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        contrast, brightness = (draws / 1000.0).view(-1, 2, 1, 1, 1).unbind(1)
        wide = images.float()
        changed = torch.addcmul(self.brightness * brightness, wide, 1 + self.contrast * contrast)
        return changed.to(images.dtype)


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn uint8 N×C×H×W images into (value / 255 - mean) / std, channels-last, of type `dtype`."""
    scale = _per_channel([1 / (255 * s) for s in std], images.device)
    shift = _per_channel([-m / s for m, s in zip(mean, std, strict=True)], images.device)
    wide = images.to(torch.float32, memory_format=torch.channels_last)
    return torch.addcmul(shift, wide, scale).to(dtype)


def resized(images: Tensor, side: int) -> Tensor:
    """Return normalised N×C×H×W images as N×C×side×side, by bilinear interpolation with antialiasing."""
    small = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return small.to(images.dtype, memory_format=torch.channels_last)


def _per_channel(numbers: list[float], device: torch.device) -> Tensor:
    # A blocking copy would make the host wait for the GPU at every batch.
    return torch.tensor(numbers).to(device, non_blocking=True).view(1, -1, 1, 1)


def augment(
    images: Tensor,
    augmentations: Sequence[Augmentation],
    draws: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Apply augmentations in their order to uint8 images, and normalise them on the way."""
    raw = True
    for augmentation, drawn in zip(augmentations, draws, strict=True):
        if raw and augmentation.on_normalised:
            images, raw = normalise(images, mean, std, dtype), False
        elif not raw and not augmentation.on_normalised:
            raise InputError(
                f"{augmentation} comes after one that needs normalised images",
                "Put crops and flips first, Cutout last.",
            )
        images = augmentation.apply(images, drawn)
    return normalise(images, mean, std, dtype) if raw else images
