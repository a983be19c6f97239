"""`Shapes`: ten kinds of object, drawn by arithmetic, for when there is nothing to download.

Coverage, 0…256, is a field (see `shape_fields`) cut to a ramp one pixel wide, which smooths the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.data.images import DataFacts, ImageSet, statistics
from firstlight.data.shape_fields import FIELDS, KINDS, Draws, Plane, Words, disc, turn
from firstlight.errors import InputError
from firstlight.machine.limits import usable_memory

Paint = npt.NDArray[np.int32]  # n×3×32×32, or n×3×1×1 for one colour per image

SMALLEST = 40
"""The smallest size of an object, in percent: a radius of 3 to 5 pixels still tells its kind."""

_SIDE = 32
_BYTES = 3 * _SIDE**2 + _SIDE**2  # of an image and its mask
_CHUNK = 64  # large enough to hide Python's cost, small enough for a plane to stay in the cache
_FIRST_TEST = 10**10  # a multiple of ten that no training set reaches, so the two never share an image

# Six colours each, from which every picture takes its ground, object and clutter.
_PALETTES = (
    (0x14213D, 0x2A6F97, 0x89C2D9, 0xFCA311, 0xF4F1DE, 0xD1495B),
    (0x264653, 0x2A9D8F, 0xE9C46A, 0xF4A261, 0xE76F51, 0xFAF3DD),
    (0x2B2D42, 0x8D99AE, 0xEDF2F4, 0xEF5B5B, 0xFFBA49, 0x20A39E),
    (0x231942, 0x5E548E, 0x9F86C0, 0xE0B1CB, 0xF7EDE2, 0xF28482),
    (0x1B4332, 0x40916C, 0x95D5B2, 0xF1FAEE, 0xE5989B, 0x6D3B47),
    (0x3D2C2E, 0x7F5539, 0xDDB892, 0xF5EBE0, 0x588157, 0xBC4749),
    (0x0B132B, 0x1C7293, 0x5BC0BE, 0xF9DC5C, 0xED6A5A, 0xF4F4F2),
    (0x3A0CA3, 0x7209B7, 0xF72585, 0x4CC9F0, 0xFFE8D6, 0x1A1B41),
    (0x33415C, 0x7D8597, 0xC9ADA7, 0xF2E9E4, 0x9A8C98, 0x4A4E69),
    (0x582F0E, 0xA68A64, 0x414833, 0xB6AD90, 0xE9E5D6, 0xD08C60),
    (0x006D77, 0x83C5BE, 0xEDF6F9, 0xFFDDD2, 0xE29578, 0x3B3355),
    (0x10002B, 0x3C096C, 0xC77DFF, 0xFF9E00, 0xFFD6A5, 0x2EC4B6),
)


def _wave(x: Plane) -> Plane:
    """Return a triangle wave, 0…256, of period 512."""
    return np.abs(256 - (x & 511))


def _crisp(wave: Plane) -> Plane:
    return np.clip(3 * wave - 256, 0, 256)


_PATTERNS: tuple[Callable[[Plane, Plane], Plane], ...] = (
    lambda u, v: np.zeros_like(u),
    lambda u, v: np.clip(128 + (u >> 4), 0, 256),
    lambda u, v: _crisp(_wave(u)),
    lambda u, v: _crisp(_wave(u) + _wave(v) - 96),
    lambda u, v: _crisp(128 + ((_wave(u) - 128) * (_wave(v) - 128) >> 6)),
    lambda u, v: _crisp(_wave((u * u + v * v) >> 10)),
    lambda u, v: _crisp(_wave(u + (_wave(v) >> 1))),
)


def _pattern(draws: Draws, x: Plane, y: Plane) -> Plane:
    """Return plain, gradient, stripes, dots, checks, rings or waves over positions in 1/16 pixel, 0…256."""
    style, pace = draws.between(0, len(_PATTERNS) - 1), draws.between(70, 130)
    u, v = turn(x, y, draws.between(0, 359))
    u, v = (u * pace) >> 4, (v * pace) >> 4
    value = np.empty_like(u)
    for number, pattern in enumerate(_PATTERNS):
        chosen = style[:, 0, 0] == number
        value[chosen] = pattern(u[chosen], v[chosen])
    return value


def _clouds(draws: Draws) -> Plane:
    """Return smooth noise, 0…255: a 5×5 lattice of random heights, eased between its points."""
    step = np.arange(_SIDE, dtype=np.int32)
    part = (step % 8) * 2 + 1
    ease = (part * part * (48 - 2 * part)) >> 4  # 256 · (3t² - 2t³) for t = part / 16
    weight = np.zeros((_SIDE, 5), dtype=np.int32)
    weight[step, step // 8] = 256 - ease
    weight[step, step // 8 + 1] = ease
    heights = draws.between(0, 255, 25).reshape(-1, 5, 5)
    return (weight @ heights @ weight.T) >> 16


def _stroke(draws: Draws, x: Plane, y: Plane, reach: int, thin: int, thick: int) -> Plane:
    """Return the coverage of a long stroke, straight or bent, that passes within `reach` of the origin."""
    u, v = turn(x, y, draws.between(0, 359))
    bend = draws.between(520, 1200)  # never so tight that a stroke closes into a ring within the frame
    v = np.where(draws.chance(50) == 1, -disc(u, v - bend, bend), v) - draws.between(-reach, reach)
    field = draws.between(thin, thick) - np.abs(v)
    return np.clip(128 + 16 * field, 0, 256)


def _paint(canvas: Paint, colour: Paint, coverage: Plane) -> None:
    canvas += ((colour - canvas) * coverage[:, None]) >> 8


def _colours(draws: Draws) -> list[Paint]:
    """Return six colours for each image: one palette, shuffled and shifted a little."""
    codes = np.array(_PALETTES, dtype=np.int32)[draws.between(0, len(_PALETTES) - 1)[:, 0, 0]]
    codes = np.take_along_axis(codes, draws.order(6), axis=1)
    colours = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], axis=2)
    colours = np.clip(colours + draws.between(-14, 14, 18).reshape(-1, 6, 3), 0, 255)
    return [colours[:, number, :, None, None] for number in range(6)]


def _apart(colour: Paint, ground: Paint, least: int) -> Paint:
    """Return the colour, made lighter or darker where it lies nearer than `least` to the ground."""
    near = np.abs(colour - ground).sum(axis=1, keepdims=True, dtype=np.int32) < least
    up = ground.sum(axis=1, keepdims=True, dtype=np.int32) < 3 * 128
    return np.where(near, ground + np.where(up, np.int32(least), np.int32(-least)) // 3, colour)


class _Scene:
    """Some images while they are drawn, in five stages: each takes the draws that follow the last one's."""

    x: Plane
    y: Plane

    def __init__(self, seed: int, indices: Words, kinds: npt.NDArray[np.int64]) -> None:
        self.draws, self.kinds = Draws(seed, 1, indices), kinds
        self.first, self.second, self.body, self.detail, self.other, self.front = _colours(self.draws)
        grid = np.arange(_SIDE, dtype=np.int32) * 16 - (_SIDE * 8 - 8)  # pixel centres in 1/16 pixel
        self.x, self.y = np.broadcast_arrays(grid[None, None, :], grid[None, :, None])

    def ground(self) -> None:
        """Begin the canvas: two colours, mixed by clouds and a pattern."""
        pattern = _clouds(self.draws) * 3 + _pattern(self.draws, self.x, self.y) * self.draws.between(0, 1)
        mix = np.clip(pattern >> 2, 0, 256)
        self.canvas = self.first + (((self.second - self.first) * mix[:, None]) >> 8)

    def clutter(self) -> None:
        """Paint strokes and blobs that belong to no object."""
        draws, x, y = self.draws, self.x, self.y
        for colour in (self.other, self.detail, self.second):
            coverage = _stroke(draws, x, y, 220, 6, 22) * draws.chance(40)
            _paint(self.canvas, colour, (coverage * draws.between(100, 256)) >> 8)
        for colour in (self.second, self.other):
            blob = disc(x - draws.between(-256, 256), y - draws.between(-256, 256), draws.between(20, 110))
            _paint(self.canvas, colour, np.clip(128 + blob * draws.between(1, 3), 0, 256) * draws.chance(40))

    def object(self, size: int) -> None:
        """Paint the object and its shadow; from here on the middle of the object is the origin."""
        draws = self.draws
        radius = draws.between(112, 208) * size // 100  # 7 to 13 pixels, at the usual size
        middle = np.maximum(256 - radius, 40)
        left, top = (((draws.between(-256, 256)) * middle) >> 8 for _ in range(2))
        self.x, self.y = self.x - left, self.y - top
        pose = radius, draws.between(320, 400), draws.between(1024, 1280), draws.between(0, 255)

        shadow = self._coverage(pose, draws.between(12, 40), 2) * draws.chance(50)
        _paint(self.canvas, np.zeros_like(self.first), (shadow * 90) >> 8)
        veil = draws.between(0, 80)[:, None]
        around = (self.first + self.second) >> 1
        body = _apart(self.body + (((around - self.body) * veil) >> 8), around, 180)
        pattern = (_pattern(draws, self.x, self.y) * draws.between(30, 140)) >> 8
        self.covered = self._coverage(pose, 0, 0)
        _paint(self.canvas, body + (((self.detail - body) * pattern[:, None]) >> 8), self.covered)

    def _coverage(self, pose: tuple[Plane, ...], shift: Plane | int, softness: int) -> Plane:
        radius, tilt, stretch, trait = pose
        u, v = turn((self.x - shift) * 16, (self.y - shift) * 16, tilt)
        u, v = u * 64 // radius, (v * 64 // radius) * stretch >> 10
        field = np.empty_like(u)
        for number, kind in enumerate(FIELDS.values()):
            rows = self.kinds == number
            field[rows] = kind(u[rows], v[rows], trait[rows])
        return np.clip(128 + (np.clip(field, -1024, 1024) * radius >> (6 + softness)), 0, 256)

    def occluders(self) -> npt.NDArray[np.bool_]:
        """Paint strokes across the object, unless they would hide much of it; return where it is seen."""
        draws = self.draws
        strokes = [_stroke(draws, self.x, self.y, 150, 12, 30) * draws.chance(25) for _ in range(2)]
        whole = self.covered >= 128
        mask = whole & (np.maximum(*strokes) < 128)
        enough = 5 * mask.sum(axis=(1, 2), keepdims=True) >= 3 * whole.sum(axis=(1, 2), keepdims=True)
        for colour, stroke in zip((self.front, self.other), strokes, strict=True):
            _paint(self.canvas, colour, stroke * enough)
        return np.where(enough, mask, whole)

    def grain(self) -> Paint:
        """Return the images, 0…255: the canvas with another contrast and brightness, and with noise."""
        gain, offset = self.draws.between(190, 256)[:, None], self.draws.between(-24, 24)[:, None]
        bits = self.draws.words(_SIDE * _SIDE).reshape(-1, 1, _SIDE, _SIDE)
        shifts = np.array([0, 20, 40], dtype=np.uint64)[None, :, None, None]
        low, high = bits >> shifts & np.uint64(1023), bits >> (shifts + np.uint64(10)) & np.uint64(1023)
        noise = (low + high).astype(np.int32) - 1023  # two even draws: nearly bell-shaped
        noise = (noise * self.draws.between(4, 28)[:, None]) >> 10
        return np.clip(128 + (((self.canvas - 128) * gain) >> 8) + offset + noise, 0, 255)


def _check_size(object_size: int) -> None:
    if not SMALLEST <= object_size <= 100:
        raise InputError(
            f"shapes cannot be drawn at {object_size} % of their size",
            f"Set object_size to {SMALLEST} to 100.",
        )


def _labels(seed: int, indices: Words) -> npt.NDArray[np.int64]:
    order = Draws(seed, 0, indices // np.uint64(10)).order(10)
    return order[np.arange(len(indices)), (indices % np.uint64(10)).astype(np.intp)].astype(np.int64)


def make_shapes(
    count: int, *, seed: int = 0, first: int = 0, object_size: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images `first` to `first + count - 1` of the endless row that belongs to `seed`.

    An image depends only on the seed, its place in the row and the size of its object, so asking for more
    never changes the earlier ones. Each ten, counted from place 0, hold every kind once.

    object_size: in percent of the usual, `SMALLEST` to 100. A smaller object lies anywhere that keeps it in
        the image, so the middle of the image says less about where it is; ground and clutter stay as they
        are.

    Returns images (uint8, count×3×32×32), labels (int64, an index into `KINDS`) and masks (bool,
    count×32×32, true where the object is seen; never empty).
    """
    if count < 1:
        raise InputError(f"cannot draw {count} shapes", "Ask for at least 1.")
    if not 0 <= first <= 2**62 - count:
        raise InputError(f"shapes have no image number {first}", "Set first to 0 or more, and below 2**62.")
    _check_size(object_size)
    images = np.empty((count, 3, _SIDE, _SIDE), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    masks = np.empty((count, _SIDE, _SIDE), dtype=np.bool_)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        indices = np.arange(first + part.start, first + part.stop, dtype=np.uint64)
        labels[part] = _labels(seed, indices)
        scene = _Scene(seed, indices, labels[part])
        scene.ground()
        scene.clutter()
        scene.object(object_size)
        masks[part] = scene.occluders()
        images[part] = scene.grain()
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


@dataclass(frozen=True)
class Shapes:
    """The drawn set as a source: `train` and `test` images that never overlap.

    train, test: number of images.
    seed: of the drawings.
    object_size: size of the objects, in percent of the usual; see `make_shapes`.
    """

    name: ClassVar[str] = "shapes"

    train: int = 5000
    test: int = 2000
    seed: int = 0
    object_size: int = 100

    def __post_init__(self) -> None:
        _check_size(self.object_size)
        for part, count in (("train", self.train), ("test", self.test)):
            if count < 1:
                raise InputError(f"shapes cannot have {count} {part} images", f"Set {part} to 1 or more.")
            if count * _BYTES > usable_memory() // 2:
                most = usable_memory() // 2 // _BYTES
                raise InputError(
                    f"{count:,} {part} images of shapes do not fit into the memory here",
                    f"Set {part} to {most:,} or fewer.",
                )

    def facts(self) -> DataFacts:
        """Return classes and shape; mean and deviation are known once the images are drawn."""
        return DataFacts(KINDS, (3, _SIDE, _SIDE))

    def load(self, data_dir: Path | None = None) -> tuple[ImageSet, ImageSet]:
        """Return (train, test), with masks and the training images' mean and deviation.

        `data_dir` is there because every source takes one; nothing is read, so it is ignored.
        """
        train = make_shapes(self.train, seed=self.seed, object_size=self.object_size)
        test = make_shapes(self.test, seed=self.seed, object_size=self.object_size, first=_FIRST_TEST)
        mean, std = statistics(train[0])

        def image_set(part: str, images: Tensor, labels: Tensor, masks: Tensor) -> ImageSet:
            names = [f"{part}/{number:05d}" for number in range(len(labels))]
            return ImageSet(images, labels, KINDS, mean, std, names, masks)

        return image_set("train", *train), image_set("test", *test)
