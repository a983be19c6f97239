"""From an `ImageSet` to batches on the device: order and draws by the epoch, pictures by the batch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.data.augment import Augmentation, augment, normalise, resized
from firstlight.data.images import ImageSet
from firstlight.data.windows import Blocks, WindowReader, blocks_for, window_order
from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.machine.ranks import ALONE
from firstlight.machine.streams import stream

_SCORED_AT_ONCE = 500

# Batches whose images a GPU augments at once, since those of one do not fill it; a CPU would lose its cache.
_TOGETHER = 8


@dataclass(frozen=True)
class Plan:
    """One epoch, drawn in advance: the order of the images, and each augmentation's draws.

    order: int64, N. Row i of each tensor in `draws` belongs to the image `order[i]`.
    windows: how many images of the order each window has; one where the whole set is shuffled.
    """

    order: Tensor
    draws: tuple[Tensor, ...]
    windows: tuple[int, ...] = ()

    def rows(self, begin: int, end: int, step: int = 1) -> Plan:
        chosen = slice(begin, end, step)
        return Plan(self.order[chosen], tuple(drawn[chosen] for drawn in self.draws))


def plan_epoch(
    images: ImageSet,
    augmentations: Sequence[Augmentation],
    seed: int,
    epoch: int,
    blocks: Blocks | None = None,
) -> Plan:
    """Draw an epoch from (seed, epoch) alone: the same on every device, and replayable.

    blocks: of a set that exceeds memory.
    """
    if blocks is None:
        parts = [torch.randperm(len(images), generator=stream(seed, "order", epoch))]
    else:
        parts = window_order(len(images), blocks, seed, epoch)
    order = torch.cat(parts)
    _, height, width = images.shape
    draws = []
    for index, augmentation in enumerate(augmentations):
        own_stream = functools.partial(stream, seed, "augment", index)
        draws.append(augmentation.sample(order, height, width, own_stream, epoch))
        height, width = augmentation.output_size(height, width)
    return Plan(order, tuple(draws), tuple(map(len, parts)))


class Batches:
    """Shuffled, augmented batches for training; the last short batch of an epoch is dropped.

    sides: to which the augmented images of the first epochs are resized, one for each of these epochs.
    Where several ranks share the run, each has its share of every batch; sizes and lengths are of whole
    batches.
    On a GPU the whole set lies on the device, so that a step waits for no host. A set that exceeds the
    memory is read in windows, see `data.windows`; `blocks` is then set. It may be set to that of a run that
    goes on.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        augmentations: Sequence[Augmentation] = (),
        *,
        seed: int,
        machine: Machine,
        sides: Sequence[int] = (),
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if batch_size > len(images):
            raise InputError(
                f"a batch of {batch_size} is larger than the {len(images)} training images",
                f"Use --set batch_size=N with N ≤ {len(images)}.",
            )
        ranks = machine.ranks
        if not ranks.alone and batch_size < 4 * ranks.count:
            raise InputError(
                f"a batch of {batch_size} is too small for {ranks.count} processes",
                f"Use --set batch_size=N with N ≥ {4 * ranks.count}, or fewer processes.",
            )
        self.images, self.batch_size, self.augmentations = images, batch_size, tuple(augmentations)
        self.seed, self.machine, self.sides = seed, machine, tuple(sides)
        self.blocks = blocks_for(images.images, machine)
        self._pixels = None if self.blocks else images.images.to(machine.device)
        self._labels = images.labels.to(machine.device)
        self._together = 1 if machine.device.type == "cpu" else _TOGETHER

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.images) // self.batch_size

    def alone(self) -> Batches:
        """Return the same batches, whole, for one rank that works without the others."""
        whole = copy.copy(self)
        whole.machine = dataclasses.replace(self.machine, ranks=ALONE)
        return whole

    def apart(self, held_out: int | None = None) -> tuple[Batches, list[tuple[Tensor, Tensor]]]:
        """Return batches of all images but `held_out`, stratified, and those: normalised, with their labels.

        held_out: by default a fifth, from 64 to 1,000. Held-out images are not augmented. Raises InputError
        where less than a batch would be left.
        """
        if held_out is None:
            held_out = min(max(len(self.images) // 5, 64), 1000)
        rest, scored = self.images.split(held_out, stream(self.seed, "held out"))
        batches = Batches(
            rest, self.batch_size, self.augmentations, seed=self.seed, machine=self.machine, sides=self.sides
        )
        labels = scored.labels.to(self.machine.device).split(_SCORED_AT_ONCE)
        return batches, list(zip(in_order(scored, _SCORED_AT_ONCE, self.machine), labels, strict=True))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of an epoch, from its batch number `first` on.

        Images are normalised, channels-last, in the machine's precision; labels int64.
        """
        drawn = self.plan(epoch)
        device, ranks = self.machine.device, self.machine.ranks
        plan = Plan(drawn.order.to(device), tuple(draws.to(device) for draws in drawn.draws))
        together = self._together if ranks.alone else 1
        share = ranks.rows(self.batch_size)
        with self._reader(drawn) as pixels:
            for batch in range(first, len(self), together):
                begin, end = batch * self.batch_size, min(batch + together, len(self)) * self.batch_size
                rows = begin + ranks.rank, end, ranks.count
                part = plan.rows(*rows)
                images = self._augmented(pixels(*rows), part.draws)
                if epoch < len(self.sides):
                    images = resized(images, self.sides[epoch])
                labels = self._labels.index_select(0, part.order)
                yield from zip(images.split(share), labels.split(share), strict=True)

    def order_words(self) -> str | None:
        """Say how a set that exceeds memory is read; None of all others."""
        return None if self.blocks is None else self.blocks.words(self.images.images)

    def plan(self, epoch: int) -> Plan:
        """Return the order and the draws of an epoch."""
        return plan_epoch(self.images, self.augmentations, self.seed, epoch, self.blocks)

    def _reader(self, plan: Plan) -> AbstractContextManager[Callable[[int, int, int], Tensor]]:
        """Return what gives the pixels at the places begin, begin + step … below end of an epoch's order."""
        if (pixels := self._pixels) is not None:
            order = plan.order.to(self.machine.device)
            return contextlib.nullcontext(
                lambda begin, end, step: pixels.index_select(0, order[begin:end:step])
            )
        images, device = self.images.images, self.machine.device
        if self.blocks is not None:
            return WindowReader(images, plan.order, plan.windows, device)
        # A run that was begun where there was more memory: its order, at the speed of single images.
        return contextlib.nullcontext(lambda begin, end, step: images[plan.order[begin:end:step]].to(device))

    def _augmented(self, pixels: Tensor, draws: Sequence[Tensor]) -> Tensor:
        mean, std = self.images.mean, self.images.std
        return augment(pixels, self.augmentations, draws, mean, std, self.machine.dtype)


def in_order(images: ImageSet, batch_size: int, machine: Machine) -> Iterator[Tensor]:
    """Yield every image once, in order, normalised and unaugmented; the last batch may be short.

    Of several ranks each has every so many batches, which `Ranks.interleave` puts in order again.
    """
    ranks = machine.ranks
    for start in range(ranks.rank * batch_size, len(images), ranks.count * batch_size):
        pixels = images.images[start : start + batch_size]
        yield normalise(pixels.to(machine.device), images.mean, images.std, machine.dtype)
