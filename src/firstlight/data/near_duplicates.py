"""Pictures that show the same: found by a small signature, then confirmed by their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 32
"""Side of the thumbnails that are compared."""

_BLOCK = 1024
_CELLS = 8
_ALIKE_SIGNATURES = 0.85  # a wide net: the pixels decide
_ALIKE_GREY = 0.85  # correlation of the grey thumbnails as they are, which a slight crop lowers
_ALIKE_PIXELS = 0.97  # correlation of thumbnails, after the best of a few slight crops
_LEAST_CONTRAST = 4.0  # grey levels; below it a picture is plain and is like no other
_MOST_COLOUR_SHIFT = 12.0  # grey levels between the mean colours

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, order=True)
class Pair:
    """Two pictures that show the same, the second perhaps only in its mirror image."""

    first: int
    second: int
    is_mirrored: bool


def near_pairs(thumbnails: Bytes) -> list[Pair]:
    """Return all pairs of pictures that show the same, sorted.

    thumbnails: uint8, N×3×32×32. Pictures that differ by compression, size, a slight crop or a mirror are
    alike; plain pictures are like no other. Signatures are compared by matrix products in blocks, so memory
    grows with N and time with N², 256 operations a pair.
    """
    pairs = []
    for first, second in _candidates(thumbnails):
        straight = _alike(thumbnails[first], thumbnails[second])
        mirrored = np.zeros_like(straight)
        rest = np.flatnonzero(~straight)
        mirrored[rest] = _alike(thumbnails[first[rest]], thumbnails[second[rest]][..., ::-1])
        found = np.flatnonzero(straight | mirrored)
        pairs += [Pair(int(first[at]), int(second[at]), bool(mirrored[at])) for at in found]
    return sorted(pairs)


def groups_of(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return groups of two or more of `count` things that pairs join, sorted."""
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for first, second in pairs:
        one, other = sorted((root(first), root(second)))
        parents[other] = one
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _candidates(thumbnails: Bytes) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs whose signatures are alike and whose mean colours are near, some thousands at once."""
    grey = np.empty((len(thumbnails), SIDE, SIDE), np.float32)
    colours = np.empty((len(thumbnails), 3), np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[start : start + _BLOCK].astype(np.float32)
        grey[start : start + _BLOCK], colours[start : start + _BLOCK] = block.mean(1), block.mean((2, 3))
    busy = np.flatnonzero(grey.std((1, 2)) >= _LEAST_CONTRAST)
    straight = _signatures(grey[busy])
    mirrored = straight.reshape(-1, _CELLS, _CELLS)[:, :, ::-1].reshape(straight.shape)
    pixels = _normalised(grey[busy].reshape(-1, SIDE * SIDE))
    for start in range(0, len(busy), _BLOCK):
        block = straight[start : start + _BLOCK]
        alike = block @ straight[start:].T >= _ALIKE_SIGNATURES
        alike |= block @ mirrored[start:].T >= _ALIKE_SIGNATURES
        rows, columns = np.divmod(np.flatnonzero(alike), alike.shape[1])  # np.nonzero takes 20 times as long
        rows, columns = rows[rows < columns], columns[rows < columns]
        for at in range(0, len(rows), _BLOCK):
            first, second = start + rows[at : at + _BLOCK], start + columns[at : at + _BLOCK]
            shift = np.abs(colours[busy[first]] - colours[busy[second]]).max(1)
            near = shift <= _MOST_COLOUR_SHIFT
            first, second = first[near], second[near]
            flipped = pixels[second].reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)
            same = np.einsum("ij,ij->i", pixels[first], pixels[second])
            other = np.einsum("ij,ij->i", pixels[first], flipped)
            near = np.maximum(same, other) >= _ALIKE_GREY
            if near.any():
                yield busy[first[near]], busy[second[near]]


def _alike(one: Bytes, other: Bytes) -> npt.NDArray[np.bool_]:
    """Whether pairs of thumbnails (uint8, N×3×32×32) show the same, one perhaps slightly cropped."""
    first, second = one.astype(np.float32), other.astype(np.float32)
    alike = _correlation(first, second) >= _ALIKE_PIXELS
    for cut in (1, 2):
        rest = np.flatnonzero(~alike)
        inner = _correlation(_inner(first[rest], cut), second[rest])
        outer = _correlation(first[rest], _inner(second[rest], cut))
        alike[rest] = np.maximum(inner, outer) >= _ALIKE_PIXELS
    return np.asarray(alike)


def _signatures(grey: Floats) -> Floats:
    """Return the means of 8×8 cells, N×64, each of mean 0 and length 1."""
    size = SIDE // _CELLS
    rows = grey.reshape(-1, _CELLS, size, SIDE).sum(2)  # in two steps, each along what lies together
    return _normalised(rows.reshape(-1, _CELLS * _CELLS, size).sum(2))


def _normalised(rows: Floats) -> Floats:
    rows = rows - rows.mean(1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), np.float32)


def _inner(pictures: Floats, cut: int) -> Floats:
    """Return pictures without `cut` pixels at each edge, brought to their old size by interpolation."""
    at = np.linspace(cut - 0.5, SIDE - cut - 0.5, SIDE + 1)
    centres = (at[:-1] + at[1:]) / 2
    low = np.clip(np.floor(centres).astype(int), 0, SIDE - 2)
    part = (centres - low).astype(np.float32)
    rows = pictures[..., low, :] * (1 - part)[:, None] + pictures[..., low + 1, :] * part[:, None]
    return np.asarray(rows[..., low] * (1 - part) + rows[..., low + 1] * part)


def _correlation(one: Floats, other: Floats) -> Floats:
    size = len(one), 3 * SIDE * SIDE
    first, second = _normalised(one.reshape(size)), _normalised(other.reshape(size))
    return np.asarray(np.einsum("ij,ij->i", first, second))
