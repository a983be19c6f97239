"""The one reader of pictures: an image file, upright, as grey or RGB of 8 bits, in the form a network is fed.

What is read: JPEG, PNG, GIF (its first frame), BMP, TIFF (its first page), WebP, PPM, ICO (its largest
picture), and AVIF where Pillow decodes it. The first bytes of the file decide, never its name. How pixels of
each mode become grey or RGB is in `image_modes`. Of the metadata only the orientation is used: the rest of it
cannot end the reading. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from firstlight.data.image_formats import (
    HEAD_BYTES,
    JPEG,
    PNG,
    TIFF,
    FileKind,
    is_supported,
    kind_of,
    lacks_end,
    open_header,
    sizes_in_header,
)
from firstlight.data.image_metadata import orientation, without_metadata
from firstlight.data.image_modes import GROUND, grey_or_rgb
from firstlight.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

FITS = ("crop", "pad", "stretch")
MOST_DECODED = 120_000_000
"""Pixels of the largest picture that is decoded whole; Pillow takes up to 4 bytes for each."""
MOST_REDUCED = 250_000_000
"""Pixels of the largest JPEG file, which is decoded at 1/2, 1/4 or 1/8 of its size."""

# A decoded picture above this is also averaged over 2×2, 4×4 or 8×8 pixels before anything else.
_LARGE = 2**24
_MOST_STRIPPED_BYTES = 2**28
_FORMATS = "Give a JPEG, PNG, GIF, BMP, TIFF, WebP, PPM, ICO or AVIF file."
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by the orientation in its metadata."""


def read_image(path: Path, shape: tuple[int, int, int], fit: str = "crop") -> Tensor:
    """Return an image file as uint8 C×H×W of the wanted shape, C being 1 (grey) or 3 (RGB).

    The picture is turned upright and resized with an anti-aliased bicubic filter.
    fit: "crop" takes the largest central window of the wanted aspect, "pad" takes the whole picture and fills
    the rest with white, "stretch" takes the whole picture and changes its aspect.
    Raises InputError, naming the file, where it is no readable picture.
    """
    import torch  # takes a second, which a process that only decodes is spared

    _check(shape, fit)
    return torch.from_numpy(pixels_of(open_upright(path, max(shape[1:])), shape, fit))


def pixels_of(picture: Image.Image, shape: tuple[int, int, int], fit: str) -> npt.NDArray[np.uint8]:
    """Return an upright picture as uint8 C×H×W; `read_image` reads it with least_side = max(H, W)."""
    _check(shape, fit)
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = np.array(_fitted(picture, (width, height), fit))
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check(shape: tuple[int, int, int], fit: str) -> None:
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}", f"Choose one of {', '.join(FITS)}.")
    if shape[0] not in (1, 3):
        raise InputError(f"image files are read as 1 or 3 channels, not {shape[0]}")


def _fitted(picture: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
    if fit == "stretch":
        return picture.resize(size, Image.Resampling.BICUBIC)
    inner = _inner(picture.size, size)
    ground = Image.new(picture.mode, size, GROUND if picture.mode == "L" else (GROUND,) * 3)
    corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    ground.paste(picture.resize(inner, Image.Resampling.BICUBIC), corner)
    return ground


def _inner(picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of a whole picture inside a window of `size`."""
    scale = min(size[0] / picture[0], size[1] / picture[1])
    return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))


@dataclass(frozen=True)
class Window:
    """What a network sees of an upright picture, in fractions of the picture's width and height.

    With fit="pad" it reaches beyond the picture.
    """

    left: float
    top: float
    width: float
    height: float


def window(picture: tuple[int, int], size: tuple[int, int], fit: str) -> Window:
    """Return which part of a picture fills an image of `size`; both are width and height in pixels."""
    if fit == "stretch":
        return Window(0, 0, 1, 1)
    if fit == "crop":
        width = min(1.0, picture[1] * size[0] / size[1] / picture[0])
        height = min(1.0, picture[0] * size[1] / size[0] / picture[1])
        return Window((1 - width) / 2, (1 - height) / 2, width, height)
    inner = _inner(picture, size)
    corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return Window(-corner[0] / inner[0], -corner[1] / inner[1], size[0] / inner[0], size[1] / inner[1])


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height as the header of a file says them, before any turn.

    Raises InputError where it is no file of a readable kind, and whatever Pillow raises for a broken header.
    """
    with open(path, "rb") as stream:
        return open_header(_readable_kind(stream.read(HEAD_BYTES), printable(path)), stream).size


def open_upright(path: Path, least_side: int | None = None) -> Image.Image:
    """Return the picture in a file, upright, in mode L or RGB.

    least_side: pixels of the smaller side that the caller needs. A JPEG file may then be decoded at 1/2, 1/4
    or 1/8 of its size, with both sides at least as long as this; another file of more than 16 megapixels is
    averaged likewise, to at least twice as long. None reads every pixel.
    Raises InputError where the file is missing, is not of a readable kind (it is named by its first bytes),
    is damaged, or has more pixels than MOST_REDUCED (JPEG) or MOST_DECODED.
    """
    name = printable(path)
    try:
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{name} is a folder or a device, not a file", _FORMATS)
        with open(path, "rb") as stream:
            return read_upright(stream, name, least_side)
    except FileNotFoundError:
        raise InputError(f"there is no file {name}") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {name}: {printable(reason)}") from None


def read_upright(stream: IO[bytes], name: str, least_side: int | None = None) -> Image.Image:
    """Return the picture in an open binary file that can seek; see `open_upright`.

    name: what messages call it.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    kind = _readable_kind(head, name)
    try:
        return _decoded(kind, stream, name, least_side)
    except InputError:
        raise
    except Exception as error:
        # A broken file makes Pillow raise almost anything: struct.error, KeyError, EOFError, a warning.
        if kind in (JPEG, PNG):
            bare = _decoded_without_metadata(kind, stream, name, least_side)
            if bare is not None:
                return bare
        raise _decoding_failure(kind, stream, name, error) from None


def _readable_kind(head: bytes, name: str) -> FileKind:
    if not head:
        raise InputError(f"{name} is empty (0 bytes)", "Copy or download it again, or leave it out.")
    if not head.strip(b"\0"):
        raise InputError(f"{name} begins with zero bytes only", "Copy or download it again, or leave it out.")
    kind = kind_of(head)
    if kind is None:
        raise InputError(f"{name} is no image file of a known kind: it begins with {head[:8]!r}", _FORMATS)
    if not kind.plugin:
        raise InputError(f"cannot read {name}: this is {kind.name}", kind.hint)
    if not is_supported(kind):
        raise InputError(
            f"cannot read {name}: this is {kind.name}, which the installed Pillow does not decode", kind.hint
        )
    return kind


def _decoded(
    kind: FileKind, stream: IO[bytes], name: str, least_side: int | None, exif: bytes = b""
) -> Image.Image:
    """Return the picture upright. Raises InputError if it is too large, and whatever Pillow raises."""
    for size in sizes_in_header(kind, stream):
        _check_size(name, size, MOST_DECODED)
    image = open_header(kind, stream)
    full_size = image.size
    if kind is JPEG:
        # A progressive file is decoded whole, at 2 bytes for each of 3 channels, before it is made smaller.
        is_progressive = bool(image.info.get("progressive"))
        _check_size(name, full_size, MOST_DECODED if is_progressive else MOST_REDUCED)
        if least_side is not None:
            image.draft(None, (least_side, least_side))
    _check_size(name, image.size, MOST_DECODED)
    subfile_type = getattr(image, "tag_v2", {}).get(254)
    if kind is TIFF and isinstance(subfile_type, int) and subfile_type & 1:
        raise InputError(
            f"{name} begins with a preview, as a camera raw file does",
            "Develop it, and save the picture as JPEG or PNG.",
        )
    _correct_transparent_colour(kind, image)
    image.load()
    if exif:
        image.info["exif"] = exif
    turn = TURNS.get(orientation(image))
    flat = grey_or_rgb(image, _factor(image.size, least_side))
    return flat if turn is None else flat.transpose(turn)


def _decoded_without_metadata(
    kind: FileKind, stream: IO[bytes], name: str, least_side: int | None
) -> Image.Image | None:
    """Return the picture after metadata is taken out of its file, or None if that does not help."""
    stream.seek(0)
    data = stream.read(_MOST_STRIPPED_BYTES + 1)
    if len(data) > _MOST_STRIPPED_BYTES:
        return None
    try:
        bare, exif = without_metadata(kind, data)
        return _decoded(kind, io.BytesIO(bare), name, least_side, exif)
    except InputError:
        raise
    except Exception:
        return None  # the first error is told


def _decoding_failure(kind: FileKind, stream: IO[bytes], name: str, error: Exception) -> InputError:
    text = printable(str(error) or type(error).__name__)
    if "truncated" in text.lower() or lacks_end(kind, stream):
        return InputError(
            f"{name} is {kind.name} that is cut short: {text}", "Copy or download it again, or leave it out."
        )
    return InputError(
        f"cannot decode {name}, {kind.name} that is damaged or of a rare variant: {text}",
        "Save it again as JPEG or PNG, or leave it out.",
    )


def _check_size(name: str, size: tuple[int, int], limit: int) -> None:
    if size[0] * size[1] > limit:
        raise InputError(
            f"{name} is {size[0]}×{size[1]}, {size[0] * size[1] / 1e6:.0f} megapixels: the limit is "
            f"{limit // 1_000_000} megapixels",
            f"Make it smaller first; a baseline JPEG file may have {MOST_REDUCED // 1_000_000} megapixels.",
        )


def _factor(size: tuple[int, int], least_side: int | None) -> int:
    if least_side is None or size[0] * size[1] <= _LARGE:
        return 1
    return next((factor for factor in (8, 4, 2) if min(size) >= 2 * least_side * factor), 1)


def _correct_transparent_colour(kind: FileKind, image: Image.Image) -> None:
    """Bring the transparent colour of a PNG file to the range of its pixels, which Pillow makes 8 bits.

    Of a colour of 16 bits only the upper 8 can be compared.
    """
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if kind is not PNG or not tiles:
        return
    raw_mode = tiles[0][3]
    if image.mode == "RGB" and isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 if raw_mode == "RGB;16B" else part & 255 for part in key)
    elif image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = {"L;2": (key & 3) * 85, "L;4": (key & 15) * 17}.get(raw_mode, key & 255)
