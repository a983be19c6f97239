"""Pictures become pixels: their common side, and all of them read once, on several threads."""

from __future__ import annotations

import hashlib
import inspect
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from tqdm import tqdm

from firstlight.data import image_files, image_formats, image_metadata, image_modes
from firstlight.data.folder_files import Picture
from firstlight.data.folder_picture import THUMBNAIL, Result, Rows, quiet, read_picture
from firstlight.data.image_files import size_of
from firstlight.data.images import Images

SIDES = (32, 64, 96, 128, 160, 224)
"""Sides from which one is chosen."""
_MEASURED = 500  # pictures of which the size is read to choose a side
_MOST_THREADS = 4  # each may hold a picture of the largest size that is read, about 0.5 GB
_AT_ONCE = 256
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Pixels:
    """What came out of reading pictures, in their order.

    rows: uint8, N×3×side×side, in a file that ends with them; black where a picture could not be read.
    digests: SHA-256 of each file. reasons: why it could not be read, "" where it was.
    thumbnails: uint8, N×3×32×32, the whole picture whatever its shape; of very many pictures none.
    is_final: whether reading again would give the same: not after an error of the disk.
    """

    rows: Images
    digests: list[str]
    reasons: list[str]
    is_final: bool
    thumbnails: Rows


def reading_rule() -> str:
    """Return what changes when pixels may be computed otherwise: our reader's code and Pillow's version."""
    reader = (image_files, image_formats, image_metadata, image_modes)
    code = "".join(map(inspect.getsource, reader))
    return hashlib.sha256(f"{PIL.__version__} {code}".encode()).hexdigest()


def choose_side(pictures: Sequence[Picture], largest: int) -> tuple[int, int]:
    """Return the largest side that is not above the median shorter side, and that median.

    At least 32, at most `largest`. The median is that of 500 pictures, evenly taken.
    """
    sides = []
    with quiet():
        for picture in pictures[:: -(-len(pictures) // _MEASURED)]:
            try:
                sides.append(min(size_of(picture.path)))
            except Exception:  # it is named when it is read
                continue
    median = int(statistics.median(sides or [SIDES[0]]))
    return max([SIDES[0], *(side for side in SIDES if side <= min(median, largest))]), median


def read_pixels(pictures: Sequence[Picture], side: int, fit: str, folder: Path) -> Pixels:
    """Read all pictures; rows go to an unnamed file in `folder`, or into memory where there is no room."""
    shape = (len(pictures), 3, side, side)
    thumbnails = np.zeros((len(pictures), *THUMBNAIL), np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            results = []
            for index, result in enumerate(_results(pictures, side, fit)):
                row = np.zeros(shape[1:], np.uint8) if result.row is None else result.row
                # Not by the map: a full disk would end the process instead of raising an error.
                file.write(row.tobytes())
                if result.thumbnail is not None:
                    thumbnails[index] = result.thumbnail
                results.append(replace(result, row=None, thumbnail=None))
            file.flush()
            rows: Any = np.memmap(file, dtype=np.uint8, mode="c", shape=shape)
    except OSError:
        rows, results = np.zeros(shape, np.uint8), []
        for index, result in enumerate(_results(pictures, side, fit)):
            if result.row is not None:
                rows[index] = result.row
            if result.thumbnail is not None:
                thumbnails[index] = result.thumbnail
            results.append(replace(result, row=None, thumbnail=None))
    return Pixels(
        torch.from_numpy(rows),
        [result.digest for result in results],
        [result.reason for result in results],
        all(result.is_final for result in results),
        thumbnails,
    )


def _results(pictures: Sequence[Picture], side: int, fit: str) -> Iterator[Result]:
    read = partial(read_picture, shape=(3, side, side), fit=fit)
    # tqdm shows nothing in a file, and nothing of what is quickly done.
    with (
        quiet(),
        ThreadPoolExecutor(threads()) as pool,
        tqdm(
            total=len(pictures), desc="reading", unit=" pictures", delay=2, disable=None, leave=False
        ) as bar,
    ):
        for result in worked_ahead(pool, read, pictures, _AT_ONCE):
            bar.update()
            yield result


def worked_ahead(
    pool: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item], count: int
) -> Iterator[_Result]:
    """Yield what `work` makes of each item; so many are worked on or done before they are taken.

    One more for each that is taken: no thread waits, and memory stays bounded.
    """
    rest = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(rest, count))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
        yield result


def threads() -> int:
    """Return on how many threads pictures are read."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
