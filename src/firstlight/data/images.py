"""`ImageSet`: the one form in which pictures reach the rest of the house."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from firstlight.errors import InputError


@dataclass(frozen=True)
class DataFacts:
    """What is known of a set of images: enough to name a class and to normalise an image.

    classes: names in label order.
    shape: channels, height and width of one image.
    mean, std: one number per channel, of pixel values scaled to 0…1; empty where only loading tells.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Images(Protocol):
    """What holds the pixels of a set, uint8, N×C×H×W: a tensor, or `StoredImages`, which reads its rows.

    Indexing gives a tensor. `index_select` and `narrow` give images again, of some rows; where they are
    stored nothing is read.
    """

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def ndim(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...
    def index_select(self, dim: int, index: Tensor, /) -> Any: ...
    def narrow(self, dim: int, start: int, length: int, /) -> Any: ...
    def split(self, split_size: int, /) -> Iterable[Tensor]: ...
    def to(self, device: torch.device, /) -> Tensor: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, with what is needed to normalise and to name them.

    images: uint8, N×C×H×W; may be memory-mapped or stored in a file, so treat it as read-only.
    labels: int64, N; an index into `classes`.
    mean, std: one number per channel, of pixel values scaled to 0…1; of the *training* images,
        also in the test set that belongs to them.
    names: one per image, by which a person finds it again.
    masks: bool, N×H×W, true on the object; only where the source knows it.
    notes: what a person should know of how the set came to be, a sentence each.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: Sequence[str]
    masks: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            actual = f"{self.images.dtype} of {tuple(self.images.shape)}"
            raise InputError(f"images must be uint8 N×C×H×W, not {actual}")
        count, channels = self.images.shape[:2]
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise InputError(f"{count} images need int64 labels of shape ({count},)")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            number = len(self.classes)
            raise InputError(f"a label lies outside 0…{number - 1}, the {number} classes")
        if len(self.mean) != channels or len(self.std) != channels:
            raise InputError(f"mean and std need {channels} numbers each, one per channel")
        if len(self.names) != count:
            raise InputError(f"{count} images need {count} names, not {len(self.names)}")
        if self.masks is not None and self.masks.shape != (count, *self.images.shape[2:]):
            raise InputError("masks must be N×H×W, as large as the images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def facts(self) -> DataFacts:
        return DataFacts(self.classes, self.shape, self.mean, self.std)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels and class names, in hexadecimal."""
        sha = hashlib.sha256("\0".join(self.classes).encode())
        for parts in (self.images.split(4096), self.labels.split(4096)):
            for part in parts:
                sha.update(part.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at `indices` (int64), in that order; stored ones are not read."""
        return replace(
            self,
            images=self.images.index_select(0, indices),
            labels=self.labels[indices],
            names=[self.names[i] for i in indices.tolist()],
            masks=None if self.masks is None else self.masks[indices],
        )

    def split(self, held_out: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
        """Split into (rest, held out), stratified: each class gives in proportion to its size.

        Shares are rounded by largest remainder, so exactly `held_out` images are held out. Both
        parts keep the original order.
        """
        if not 0 <= held_out < len(self):
            raise InputError(
                f"cannot hold {held_out} of {len(self)} images out for validation",
                "Set validation to a smaller number (0 holds none out).",
            )
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        exact = counts.double() * held_out / max(len(self), 1)
        take = exact.floor().long()
        missing = held_out - int(take.sum())
        take[torch.argsort(exact - take, descending=True, stable=True)[:missing]] += 1
        chosen = torch.zeros(len(self), dtype=torch.bool)
        for label, number in enumerate(take.tolist()):
            members = torch.nonzero(self.labels == label).flatten()
            order = torch.randperm(len(members), generator=generator)
            chosen[members[order[:number]]] = True
        indices = torch.arange(len(self))
        return self.subset(indices[~chosen]), self.subset(indices[chosen])


def statistics(images: Images, rows: Tensor | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 N×C×H×W images, scaled to 0…1.

    Summed as integers, so the result does not depend on the order or the number of threads.

    rows: int64, the indices of the images that count; by default all.
    """
    channels = images.shape[1]
    total = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    levels = torch.arange(256)
    rows = torch.arange(len(images)) if rows is None else rows
    # About 12 MB at once, whatever the size of an image.
    for part in rows.split(max(1, 4096 * 3072 // max(images.shape[1:].numel(), 1))):
        # How often each value occurs, which is counted faster than values and squares are summed.
        counts = torch.stack(
            [channel.flatten().bincount(minlength=256) for channel in images[part].unbind(1)]
        )
        total += counts @ levels
        squares += counts @ levels**2
    count = len(rows) * images.shape[2:].numel() if len(rows) and channels else 0
    if not count:
        raise InputError("an empty set of images has no mean")
    mean = total.double() / count
    variance = squares.double() / count - mean**2
    std = variance.clamp_min(0).sqrt().clamp_min(1e-6)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
