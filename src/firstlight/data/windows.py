"""Sets larger than memory: their order in blocks and windows, read ahead of the training.

A disk gives neighbours fast and single images slowly. So an epoch shuffles blocks of neighbours, and takes
some hundred of them at a time into memory, a window, in which it shuffles the images.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from firstlight.data.images import Images
from firstlight.data.stored import StoredImages
from firstlight.machine.limits import usable_memory
from firstlight.machine.machine import Machine
from firstlight.machine.streams import stream

_BLOCK = 2**19
"""Bytes of a block: a quarter of a millisecond of an NVMe disk, some milliseconds of a turning one."""
_WINDOW = 2**29
"""Bytes of the largest window; two are in memory, the one in use and the next."""
_BLOCKS = 64
"""Blocks of a window at least, or neighbours, which are often of one class, would make up its batches."""


@dataclass(frozen=True)
class Blocks:
    """The order of a set that exceeds memory. block, window: images in each; the last ones may be shorter."""

    block: int
    window: int

    def words(self, images: Images) -> str:
        """Say what is done with these images, and in which order they are shown."""
        size = images.shape[1:].numel()
        return (
            f"{_size(len(images) * size)} of images exceed the memory for them and stay on the disk: "
            f"shuffled in blocks of {self.block:,} neighbours, then within windows of {self.window:,} images "
            f"({_size(self.window * size)})"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GB" if count >= 2**30 else f"{count / 2**20:.3g} MB"


def most_held() -> int:
    """Return the bytes of images that may be held in memory: half of it, since training needs some too."""
    return usable_memory() // 2


def blocks_for(images: Images, machine: Machine) -> Blocks | None:
    """Return blocks for images that exceed the memory here or the device's, None for all others."""
    most, size = most_held(), images.shape[1:].numel()
    if machine.device.type == "cuda":
        most = min(most, torch.cuda.get_device_properties(machine.device).total_memory // 2)
    if len(images) * size <= most:
        return None
    window = min(_WINDOW, most // 8)
    block = max(1, min(_BLOCK, window // _BLOCKS) // size)
    return Blocks(block, max(1, window // size // block) * block)


def window_order(count: int, blocks: Blocks, seed: int, epoch: int) -> list[Tensor]:
    """Return the order of `count` images in an epoch, int64, a tensor for each window: every image once."""
    starts = torch.arange(0, count, blocks.block)
    starts = starts[torch.randperm(len(starts), generator=stream(seed, "blocks", epoch))]
    generator, windows = stream(seed, "order", epoch), []
    for part in starts.split(max(1, blocks.window // blocks.block)):
        rows = (part[:, None] + torch.arange(blocks.block)).flatten()
        rows = rows[rows < count]
        windows.append(rows[torch.randperm(len(rows), generator=generator)])
    return windows


class WindowReader:
    """Gives the images of an epoch in its order, and reads the next window while one is in use.

    order: int64, N. lengths: of its windows. Usable as a context, which ends the reading. The places that are
    asked for only go up.
    """

    def __init__(self, images: Images, order: Tensor, lengths: Sequence[int], device: torch.device) -> None:
        self._images, self._order, self._device = images, order, device
        self._ends = list(accumulate(lengths))
        self._pool = ThreadPoolExecutor(1)
        self._number, self._window = -1, (torch.empty(0), torch.empty(0))
        # Not from the heap, where other tensors would settle between two windows and make it grow.
        shape = (max(lengths), *images.shape[1:])
        self._buffers = [torch.frombuffer(mmap(-1, math.prod(shape)), dtype=torch.uint8) for _ in range(2)]
        self._buffers = [buffer.view(shape) for buffer in self._buffers]
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, begin: int, end: int, step: int = 1) -> Tensor:
        """Return the images at `begin`, `begin + step` … below `end` of the order, on the device."""
        parts = []
        while begin < end:
            number = bisect_right(self._ends, begin)
            pixels, rows = self._at(number)
            start, stop = self._ends[number - 1] if number else 0, min(end, self._ends[number])
            parts.append(pixels.index_select(0, rows[begin - start : stop - start : step]))
            begin += step * -(-(stop - begin) // step)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _at(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a window's images, and the row of each of its images among them; begin to read the next."""
        if number != self._number:
            ahead, self._ahead = self._ahead, None
            window = None if ahead is None else ahead[1].result()  # also where it is passed over
            pixels, rows = window if window and ahead and ahead[0] == number else self._read(number)
            # Not by the thread: memory that another thread asks of a GPU would spoil the capture of a graph.
            self._window = pixels.to(self._device), rows.to(self._device)
            self._number = number
            if number + 1 < len(self._ends):
                self._ahead = number + 1, self._pool.submit(self._read, number + 1)
        return self._window

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        """Read a window, without torch's operations.

        For a second thread that computes with torch, OpenMP would start further threads. It then counts more
        threads than cores, and lets those of the training sleep at every wait instead of spinning: with two
        cores, 0.6 times the images a second.
        """
        start = self._ends[number - 1] if number else 0
        order = self._order[start : self._ends[number]].numpy()
        places = np.argsort(order)  # as the file has them
        positions = np.empty_like(places)
        positions[places] = np.arange(len(places))
        pixels, rows = self._buffers[number % 2][: len(order)], order[places]
        if isinstance(self._images, StoredImages):
            self._images.read(rows, pixels.numpy())
        else:
            np.take(np.asarray(self._images), rows, 0, out=pixels.numpy(), mode="clip")
        return pixels, torch.from_numpy(positions)
