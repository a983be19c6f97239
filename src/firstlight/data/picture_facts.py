"""What the header of an image file says: its true format, its size, its turn, and how it stores colour."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from firstlight.data.folder_files import Picture
from firstlight.data.folder_picture import quiet
from firstlight.data.folder_pixels import threads
from firstlight.data.image_files import TURNS
from firstlight.data.image_formats import (
    AVIF,
    BMP,
    GIF,
    HEAD_BYTES,
    ICO,
    JPEG,
    PNG,
    PPM,
    TIFF,
    WEBP,
    FileKind,
    is_supported,
    kind_of,
    open_header,
)
from firstlight.data.image_metadata import orientation

SUFFIXES: dict[FileKind, tuple[str, ...]] = {
    JPEG: (".jpg", ".jpeg", ".jpe", ".jfif"),
    PNG: (".png", ".apng"),
    GIF: (".gif",),
    BMP: (".bmp", ".dib"),
    TIFF: (".tif", ".tiff"),
    WEBP: (".webp",),
    PPM: (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    ICO: (".ico", ".cur"),
    AVIF: (".avif", ".avifs"),
}
"""Suffixes of the formats that are read."""

_OTHERS = (".heic", ".heif", ".jp2", ".jxl", ".svg", ".eps", ".pdf", ".psd", ".txt", ".html")
_KNOWN = frozenset([*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), *_OTHERS])


@dataclass(frozen=True)
class PictureFacts:
    """What a header says; a field is empty where the file is of no readable kind or its header is broken.

    size: width and height, upright. turn: the orientation of the metadata, 1 to 8.
    """

    kind: FileKind | None = None
    size: tuple[int, int] = (0, 0)
    turn: int = 1
    is_16_bit: bool = False
    is_cmyk: bool = False
    may_be_transparent: bool = False


def facts_of(pictures: Sequence[Picture]) -> list[PictureFacts]:
    """Return the facts of each picture, in their order; never raises for a broken file."""
    with quiet(), ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(_facts, [picture.path for picture in pictures]))


def has_wrong_suffix(name: str, kind: FileKind) -> bool:
    """Whether a name ends as those of another format do; an unknown suffix says nothing."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in _KNOWN and suffix not in SUFFIXES.get(kind, (suffix,))


def untwisted(thumbnail: Image.Image, turn: int) -> Image.Image:
    """Return an upright picture as the file stores it, before the turn of its metadata."""
    inverse = {6: 8, 8: 6}.get(turn, turn)
    return thumbnail.transpose(TURNS[inverse]) if inverse in TURNS else thumbnail


def _facts(path: Path) -> PictureFacts:
    kind = None
    try:
        with path.open("rb") as stream:
            kind = kind_of(stream.read(HEAD_BYTES))
            if kind is None or not kind.plugin or not is_supported(kind):
                return PictureFacts(kind)
            image = open_header(kind, stream)
            turn = orientation(image)
            # A TIFF file's own tags: newer versions of Pillow have turned its size already.
            tags = getattr(image, "tag_v2", {})
            stored = (int(tags[256]), int(tags[257])) if kind is TIFF else image.size
            size = stored[::-1] if turn >= 5 else stored
            tiles = getattr(image, "tile", None)
            raw_mode = str(tiles[0][3]) if tiles else ""
            is_16_bit = image.mode.startswith("I;16") or image.mode == "I" or "16" in raw_mode
            return PictureFacts(kind, size, turn, is_16_bit, image.mode == "CMYK", _may_be_transparent(image))
    except Exception:  # a broken header makes Pillow raise almost anything; the reader names it
        return PictureFacts(kind)


def _may_be_transparent(image: Image.Image) -> bool:
    key = image.info.get("transparency")
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or isinstance(key, (int, bytes, tuple))
