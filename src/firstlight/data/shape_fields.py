"""The ten kinds of `Shapes` as fields, and the integer arithmetic under them.

Random bits come from a counter and a hash (SplitMix64), and everything after them is integer arithmetic,
so that every machine computes the same. A field is a signed distance to an edge, positive inside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Plane = npt.NDArray[np.int32]  # n×32×32, or n×1×1 for one number per image
Field = Callable[[Plane, Plane, Plane], Plane]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1

# round(16384 · sin d°) for d = 0…90, written out because a sine's last bit differs between maths libraries.
_SINE = (
    "0 286 572 857 1143 1428 1713 1997 2280 2563 2845 3126 3406 3686 3964 4240 4516 4790 5063 5334 5604 "
    "5872 6138 6402 6664 6924 7182 7438 7692 7943 8192 8438 8682 8923 9162 9397 9630 9860 10087 10311 "
    "10531 10749 10963 11174 11381 11585 11786 11982 12176 12365 12551 12733 12911 13085 13255 13421 "
    "13583 13741 13894 14044 14189 14330 14466 14598 14726 14849 14968 15082 15191 15296 15396 15491 "
    "15582 15668 15749 15826 15897 15964 16026 16083 16135 16182 16225 16262 16294 16322 16344 16362 "
    "16374 16382 16384 "
)


def _mix(words: Words) -> Words:
    """Return SplitMix64's finaliser of each word (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Draws:
    """The random numbers of some images; each depends only on the seed, the purpose and its own index."""

    def __init__(self, seed: int, purpose: int, indices: Words) -> None:
        start = _mix(np.array([(seed + purpose * _GOLDEN) & _WORD], dtype=np.uint64))
        self._keys = _mix(_mix(start) + indices * np.uint64(_GOLDEN))
        self._used = 0

    def words(self, number: int) -> Words:
        """Return the next `number` words of each image, n×number."""
        counter = np.arange(self._used + 1, self._used + 1 + number, dtype=np.uint64)
        self._used += number
        return _mix(self._keys[:, None] + counter * np.uint64(_GOLDEN))

    def between(self, low: int, high: int, number: int = 1) -> Plane:
        """Return whole numbers from `low` to `high`, both included, n×number×1."""
        scaled = (self.words(number) >> np.uint64(40)) * np.uint64(high - low + 1) >> np.uint64(24)
        return (scaled.astype(np.int32) + np.int32(low))[:, :, None]

    def chance(self, of_hundred: int) -> Plane:
        """Return 1 with a chance of so many in a hundred, else 0; n×1×1."""
        return (self.between(0, 99) < of_hundred).astype(np.int32)

    def order(self, number: int) -> npt.NDArray[np.intp]:
        """Return the numbers below `number` in a random order for each image, n×number."""
        return np.argsort(self.words(number), axis=1, kind="stable")


def cosine(degrees: Plane) -> Plane:
    """Return 16384 · cos of whole degrees."""
    quarter = np.array(_SINE.split(), dtype=np.int32)
    wave = np.concatenate([quarter[:0:-1], -quarter[:-1], -quarter[:0:-1], quarter[:-1]])
    return wave[degrees % 360]


def turn(x: Plane, y: Plane, degrees: Plane) -> tuple[Plane, Plane]:
    """Return the point in axes turned by whole degrees."""
    along, across = cosine(degrees), cosine(degrees - 90)
    return (x * along + y * across) >> 14, (y * along - x * across) >> 14


def disc(x: Plane, y: Plane, radius: Plane | int) -> Plane:
    """Return the field of a disc about the origin."""
    # |p|² is replaced by its tangent at the edge, which is exact where it matters and needs no root.
    field: Plane = (radius * radius - x * x - y * y) // (2 * np.asarray(radius, dtype=np.int32))
    return field


def sides(x: Plane, y: Plane, number: int, apothem: int) -> list[Plane]:
    """Return the fields of the half-planes that bound a regular polygon."""
    corners = np.array([[[360 * side // number + 90]] for side in range(number)], dtype=np.int32)
    return [
        apothem - ((x * c + y * s) >> 14) for c, s in zip(cosine(corners), cosine(corners - 90), strict=True)
    ]


# The kinds: fields in the object's own axes, where 1024 is its radius; `trait`, 0…255, is thick or thin. All
# are their own mirror image, so a horizontal flip never changes the class.


def _circle(x: Plane, y: Plane, trait: Plane) -> Plane:
    return disc(x, y, 980)


def _ring(x: Plane, y: Plane, trait: Plane) -> Plane:
    return np.minimum(disc(x, y, 1000), -disc(x, y, 400 + trait))


def _crescent(x: Plane, y: Plane, trait: Plane) -> Plane:
    return np.minimum(disc(x - 200, y, 1060), -disc(x - 500 - (trait >> 1), y, 860))


def _heart(x: Plane, y: Plane, trait: Plane) -> Plane:
    x, y = np.abs(x), y - 90
    return np.maximum(((860 - x - np.abs(y)) * 724) >> 10, disc(x - 430, y + 430, 608))


def _flower(x: Plane, y: Plane, trait: Plane) -> Plane:
    field = disc(x, y, 520)
    for petal in range(5):
        angle = np.array([[[72 * petal]]], dtype=np.int32)
        away, aside = turn(x, y, angle)
        field = np.maximum(field, disc(away - 640, aside, 330 + (trait >> 2)))
    return field


def _triangle(x: Plane, y: Plane, trait: Plane) -> Plane:
    return np.minimum.reduce(sides(x, y - 80, 3, 580))


def _square(x: Plane, y: Plane, trait: Plane) -> Plane:
    return 820 - np.maximum(np.abs(x), np.abs(y))


def _hexagon(x: Plane, y: Plane, trait: Plane) -> Plane:
    return np.minimum.reduce(sides(x, y, 6, 900))


def _star(x: Plane, y: Plane, trait: Plane) -> Plane:
    # A pentagram is where a point lies inside at least four of its five lines: the second smallest decides.
    least, second = sides(x, y, 5, 380)[0], np.full_like(x, 2**24)
    for side in sides(x, y, 5, 380)[1:]:
        second = np.minimum(second, np.maximum(least, side))
        least = np.minimum(least, side)
    return second


def _cross(x: Plane, y: Plane, trait: Plane) -> Plane:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.minimum(1020 - long, 260 + (trait >> 1) - short)


FIELDS: dict[str, Field] = {
    "circle": _circle,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "flower": _flower,
    "triangle": _triangle,
    "square": _square,
    "hexagon": _hexagon,
    "star": _star,
    "cross": _cross,
}
KINDS: tuple[str, ...] = tuple(FIELDS)
