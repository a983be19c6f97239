"""Pictures that show the same: found by a small signature, then confirmed by their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SIDE = 32
"""Side of the thumbnails that are compared."""

_BLOCK = 1024
_CELLS = 8
_ALIKE_SIGNATURES = 0.85  # a wide net: the pixels decide
_ALIKE_PIXELS = 0.97  # correlation of thumbnails, after the best of a few slight crops
_LEAST_CONTRAST = 4.0  # grey levels; below it a picture is plain and is like no other
_MOST_COLOUR_SHIFT = 12.0  # grey levels between the mean colours

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def near_groups(thumbnails: Bytes) -> list[list[int]]:
    """Return groups of two or more pictures that show the same, each sorted, in the order of their first.

    thumbnails: uint8, N×3×32×32. Pictures that differ by compression, size, a slight crop or a mirror are
    alike; plain pictures are like no other. Signatures are compared by matrix products in blocks, so memory
    grows with N and time with N², 256 operations a pair.
    """
    parents = list(range(len(thumbnails)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for first, second in _candidates(thumbnails):
        one, other = sorted((root(first), root(second)))
        if one != other and are_alike(thumbnails[first], thumbnails[second]):
            parents[other] = one
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(thumbnails)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def are_alike(one: Bytes, other: Bytes) -> bool:
    """Whether two thumbnails (uint8, 3×32×32) show the same picture, perhaps mirrored or slightly cropped."""
    first, second = one.astype(np.float32), other.astype(np.float32)
    shift = np.abs(first.mean((1, 2)) - second.mean((1, 2))).max()
    if shift > _MOST_COLOUR_SHIFT or min(first.mean(0).std(), second.mean(0).std()) < _LEAST_CONTRAST:
        return False
    for mirrored in (second, second[:, :, ::-1]):
        pairs = [(first, mirrored)]
        for cut in (1, 2):
            pairs += [(_inner(first, cut), mirrored), (first, _inner(mirrored, cut))]
        if any(_correlation(*pair) >= _ALIKE_PIXELS for pair in pairs):
            return True
    return False


def _candidates(thumbnails: Bytes) -> Iterator[tuple[int, int]]:
    grey = thumbnails.mean(1, dtype=np.float32)
    busy = np.flatnonzero(grey.std((1, 2)) >= _LEAST_CONTRAST)
    straight, mirrored = _signatures(grey[busy]), _signatures(grey[busy][:, :, ::-1])
    for start in range(0, len(busy), _BLOCK):
        block = straight[start : start + _BLOCK]
        alike = np.maximum(block @ straight[start:].T, block @ mirrored[start:].T) >= _ALIKE_SIGNATURES
        for row, column in np.argwhere(np.triu(alike, 1)):
            yield int(busy[start + row]), int(busy[start + column])


def _signatures(grey: Floats) -> Floats:
    """Return the means of 8×8 cells, N×64, each of mean 0 and length 1."""
    size = SIDE // _CELLS
    cells = grey.reshape(len(grey), _CELLS, size, _CELLS, size).mean((2, 4)).reshape(len(grey), -1)
    cells = cells - cells.mean(1, keepdims=True)
    return np.asarray(cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-6), np.float32)


def _inner(picture: Floats, cut: int) -> Floats:
    """Return a picture without `cut` pixels at each edge, brought to its old size by linear interpolation."""
    at = np.linspace(cut - 0.5, SIDE - cut - 0.5, SIDE + 1)
    centres = (at[:-1] + at[1:]) / 2
    low = np.clip(np.floor(centres).astype(int), 0, SIDE - 2)
    part = (centres - low).astype(np.float32)
    rows = picture[:, low] * (1 - part)[:, None] + picture[:, low + 1] * part[:, None]
    return np.asarray(rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part)


def _correlation(one: Floats, other: Floats) -> float:
    first, second = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / norm if norm else 0.0
