"""Pixels of every mode of Pillow, made grey or RGB of 8 bits by one rule each.

| mode | rule |
| --- | --- |
| 1, L, RGB | as they are; black and white are 0 and 255 |
| P, PA, HSV, YCbCr, LAB, RGBX | RGB; LAB is relative to D50, and the fourth channel of RGBX means nothing |
| CMYK | (255 − ink) · (255 − black) / 255, as Pillow does; colour profiles are not applied |
| LA, RGBA, PA, a transparent colour | laid on white: what lies under a transparent pixel does not matter |
| La, RGBa | the same, of colours that are already multiplied by their opacity |
| I;16 in either byte order | value / 257, rounded, so that 65535 is 255 |
| I | as I;16 if all values are in 0…65535, else from the least to the greatest value |
| F | 255 · value if all are in 0…1, the value if all are in 0…255, else from the least to the greatest |

From the least to the greatest means that these become 0 and 255; a picture of a single value becomes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

GROUND = 255
"""The grey value of the ground, white: under transparent pixels, and around a padded picture."""

_STRIP_PIXELS = 2**22
_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_Strips = Iterator[tuple[int, Image.Image]]
_Scale = Callable[[NDArray[np.generic]], NDArray[np.generic]]


def grey_or_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Return the picture in mode L or RGB, by the rule of its mode.

    factor: also make it smaller by this factor, as the mean over factor×factor pixels, after transparency is
    laid on the ground. Works in strips of rows, so beside the picture it takes little more memory than the
    result. Raises ValueError on a mode without a rule, and on values that are not finite numbers.
    """
    if image.mode in ("L", "RGB") and factor == 1 and not _has_transparent_colour(image):
        return image
    scale = _scale(image) if image.mode in (*_16_BITS, "I", "F") else None
    result: Image.Image | None = None
    for top, strip in _strips(image, factor):
        part = _flat(strip, scale)
        part = part.reduce(factor) if factor > 1 else part
        if part.height == -(-image.height // factor):
            return part
        result = result or Image.new(part.mode, (part.width, -(-image.height // factor)))
        result.paste(part, (0, top // factor))
    assert result is not None
    return result


def _strips(image: Image.Image, factor: int = 1) -> _Strips:
    """Yield the first row and the pixels of strips, all but the last a multiple of `factor` rows high."""
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flat(image: Image.Image, scale: _Scale | None) -> Image.Image:
    if scale is not None:
        return _scaled(image, scale)
    match image.mode:
        case "1" | "L" if _has_transparent_colour(image):
            return _on_ground(image.convert("LA"), "L")
        case "1" | "L":
            return image.convert("L")
        case "LA":
            return _on_ground(image, "L")
        case "RGB" if _has_transparent_colour(image):
            return _on_ground(image.convert("RGBA"), "RGB")
        case "RGBA":
            return _on_ground(image, "RGB")
        case "P" | "PA":
            return _on_ground(_with_palette(image), "RGB")
        case "La" | "RGBa":
            *colours, opacity = image.split()
            ground = opacity.point([(255 - alpha) * GROUND // 255 for alpha in range(256)])
            laid = [ImageChops.add(colour, ground) for colour in colours]
            return laid[0] if len(laid) == 1 else Image.merge("RGB", laid)
        case "RGB" | "RGBX" | "CMYK" | "YCbCr" | "HSV" | "LAB":
            return image.convert("RGB")
        case mode:
            raise ValueError(f"its pixels are of mode {mode}, for which there is no rule")


def _has_transparent_colour(image: Image.Image) -> bool:
    """Return whether one value or colour stands for transparent.

    The type is checked because a text in a PNG file that is titled "transparency" stands at the same place.
    """
    key = image.info.get("transparency")
    if image.mode == "RGB":
        return isinstance(key, tuple) and len(key) == 3
    return isinstance(key, int)


def _with_palette(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "P" and isinstance(key, bytes) and len(key) > 256:
        image.info["transparency"] = key[:256]
    elif image.mode == "PA" or not isinstance(key, (int, bytes)):
        image.info.pop("transparency", None)
    return image.convert("RGBA")


def _on_ground(image: Image.Image, mode: str) -> Image.Image:
    """Lay a picture of mode LA or RGBA on the ground."""
    opacity = image.getchannel("A")
    ground = Image.new(mode, image.size, GROUND if mode == "L" else (GROUND,) * 3)
    ground.paste(image.getchannel("L") if mode == "L" else image, mask=opacity)
    return ground


def _scaled(image: Image.Image, scale: _Scale) -> Image.Image:
    values = np.asarray(image)
    grey = scale(values).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode != "F":
        grey[values == key] = GROUND
    return Image.fromarray(grey)


def _scale(image: Image.Image) -> _Scale:
    """Return the rule from the values of a picture of mode I;16, I or F to 0…255."""
    if image.mode in _16_BITS:
        return _from_16_bits
    least, greatest = _extremes(image)
    if image.mode == "I" and least >= 0 and greatest <= 65535:
        return _from_16_bits
    if image.mode == "F" and least >= 0 and greatest <= 255:
        factor = 255.0 if greatest <= 1 else 1.0
        return lambda values: np.rint(values.astype(np.float32) * factor)
    span = (greatest - least) or 1.0
    return lambda values: np.rint((values.astype(np.float64) - least) * (255.0 / span))


def _from_16_bits(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return (values.astype(np.uint32) + 128) // 257


def _extremes(image: Image.Image) -> tuple[float, float]:
    extremes: list[float] = []
    for _, strip in _strips(image):
        values = np.asarray(strip)
        extremes += [float(values.min()), float(values.max())]
    # The minimum and maximum of values with a NaN are NaN.
    if not np.isfinite(extremes).all():
        raise ValueError("some of its pixels are not finite numbers (NaN or infinity)")
    return min(extremes), max(extremes)
