"""What the first bytes of a file say that it is, and its picture opened by the one plugin for it.

The name of a file plays no part: a wrong suffix is common,
and an EPS file called .jpg would start Ghostscript.
"""

from __future__ import annotations

import importlib
import io
import struct
from dataclasses import dataclass
from typing import IO, cast

from PIL import Image

HEAD_BYTES = 512
_CONVERT = "Convert it to JPEG or PNG, or leave it out."
_SAVE_PICTURE = "Save the picture itself as JPEG or PNG, or leave the file out."
_UNPACK = "Unpack it first, and give the pictures in it."
_FRAME = "Give a single frame, saved as JPEG or PNG."
_EXPORT = "Export it as JPEG or PNG, or leave it out."


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    name: with its article, as it stands in a sentence.
    plugin, opener: Pillow's module and the class in it; empty for a kind that is refused.
    hint: what to do with a file that is refused.
    """

    name: str
    plugin: str = ""
    opener: str = ""
    hint: str = _CONVERT


JPEG = FileKind("a JPEG file", "JpegImagePlugin", "JpegImageFile")
PNG = FileKind("a PNG file", "PngImagePlugin", "PngImageFile")
GIF = FileKind("a GIF file", "GifImagePlugin", "GifImageFile")
BMP = FileKind("a BMP file", "BmpImagePlugin", "BmpImageFile")
TIFF = FileKind("a TIFF file", "TiffImagePlugin", "TiffImageFile")
WEBP = FileKind("a WebP file", "WebPImagePlugin", "WebPImageFile")
PPM = FileKind("a PPM file", "PpmImagePlugin", "PpmImageFile")
ICO = FileKind("an ICO file", "IcoImagePlugin", "IcoFile")
AVIF = FileKind("an AVIF file", "AvifImagePlugin", "AvifImageFile")
HEIC = FileKind(
    "a HEIC file",
    hint="Convert it to JPEG; an iPhone takes JPEG with Settings › Camera › Formats › Most Compatible.",
)
_RAW = FileKind("a camera raw file", hint="Develop it, and save the picture as JPEG or PNG.")
_EPS = FileKind("an EPS file")
_ZIP = FileKind("a zip file", hint=_UNPACK)
_GZIP = FileKind("a gzip file", hint=_UNPACK)
_WEB_PAGE = FileKind("an HTML page", hint="The download gave a web page: download the picture itself.")
_JPEG_2000, _JPEG_XL = FileKind("a JPEG 2000 file"), FileKind("a JPEG XL file")
_MP4 = FileKind("an MP4 film", hint=_FRAME)
_MOV = FileKind("a MOV film", hint=_FRAME)

# Where, which bytes, what. The first row that fits is taken.
_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"\x89PNG\r\n\x1a\n", PNG),
    (0, b"GIF87a", GIF),
    (0, b"GIF89a", GIF),
    (8, b"WEBP", WEBP),
    (8, b"CR\x02\x00", _RAW),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (0, b"II+\0", TIFF),
    (0, b"MM\0+", TIFF),
    (0, b"\0\0\1\0", ICO),
    (0, b"%!PS", _EPS),
    (0, b"\xc5\xd0\xd3\xc6", _EPS),
    (0, b"%PDF", FileKind("a PDF file", hint=_SAVE_PICTURE)),
    (0, b"8BPS", FileKind("a Photoshop file", hint=_EXPORT)),
    (0, b"\0\0\0\x0cjP  ", _JPEG_2000),
    (0, b"\xff\x4f\xff\x51", _JPEG_2000),
    (0, b"\0\0\0\x0cJXL ", _JPEG_XL),
    (0, b"\xff\x0a", _JPEG_XL),
    (0, b"IIU\0", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"FUJIFILM", _RAW),
    (128, b"DICM", FileKind("a DICOM file", hint=_EXPORT)),
    (0, b"PK\3\4", _ZIP),
    (0, b"PK\5\6", _ZIP),
    (0, b"\x1f\x8b", _GZIP),
    (0, b"Rar!", FileKind("a RAR file", hint=_UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7z file", hint=_UNPACK)),
    (257, b"ustar", FileKind("a tar file", hint=_UNPACK)),
    (8, b"AVI ", FileKind("an AVI film", hint=_FRAME)),
    (0, b"\x1a\x45\xdf\xa3", FileKind("a WebM or MKV film", hint=_FRAME)),
    (4, b"moov", _MOV),
    (4, b"mdat", _MOV),
    (4, b"wide", _MOV),
    (0, b"\x93NUMPY", FileKind("a NumPy array", hint=_SAVE_PICTURE)),
    (
        0,
        b"\0\5\x16\7",
        FileKind(
            "a macOS metadata file", hint="Leave it out: the picture is in the file without ._ in front."
        ),
    ),
    (
        0,
        b"version https://git-lfs",
        FileKind("a Git LFS pointer", hint="Run `git lfs pull`: the picture itself was not downloaded."),
    ),
)
_BMP_HEADER_SIZES = {12, 16, 40, 52, 56, 64, 108, 124}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def kind_of(head: bytes) -> FileKind | None:
    """Return the kind of file that begins with these bytes, or None if they are those of no known kind.

    head: the first HEAD_BYTES bytes, or the whole of a shorter file.
    """
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head[4:8] == b"ftyp":
        return _kind_by_brands(head)
    # Two letters alone would take any text that begins with them.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return BMP
    if head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3] in b" \t\r\n#":
        return PPM if len(head) > 2 else None
    return _kind_of_text(head)


def _kind_by_brands(head: bytes) -> FileKind:
    """Return the kind of a file whose first box lists the brands that it conforms to (ISO/IEC 14496-12)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[k : k + 4] for k in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    if brands & _HEIF_BRANDS:
        return HEIC
    if head[8:12] == b"crx ":
        return _RAW
    return _MOV if head[8:12] == b"qt  " else _MP4


def _kind_of_text(head: bytes) -> FileKind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text.startswith(b"<"):
        return None
    if b"<svg" in text:
        return FileKind("an SVG file", hint=_EXPORT)
    if b"<html" in text or b"<!doctype html" in text:
        return _WEB_PAGE
    return FileKind("an XML file", hint=_SAVE_PICTURE) if text.startswith(b"<?xml") else None


def is_supported(kind: FileKind) -> bool:
    """Return whether the installed Pillow decodes a readable kind: AVIF and WebP are options of its build."""
    try:
        return bool(getattr(importlib.import_module(f"PIL.{kind.plugin}"), "SUPPORTED", True))
    except ImportError:
        return False


def open_header(kind: FileKind, stream: IO[bytes]) -> Image.Image:
    """Return the picture in a stream with its header read and its pixels not.

    The plugin's class is called, not `Image.open`, for two reasons: only the plugin of this kind is tried,
    and Pillow's limit on the number of pixels, a global of the process, is not in the way of an honest photo.
    The caller checks the size. Raises whatever the plugin raises, which is almost any exception.
    """
    stream.seek(0)
    opener = getattr(importlib.import_module(f"PIL.{kind.plugin}"), kind.opener)
    if kind is ICO:
        # The largest of its pictures. Pillow's class for the whole icon loses the transparency of a palette.
        return cast(Image.Image, opener(stream).frame(0))
    return cast(Image.Image, opener(stream))


def sizes_in_header(kind: FileKind, stream: IO[bytes]) -> list[tuple[int, int]]:
    """Return the widths and heights that a WebP or ICO file claims; nothing for another kind.

    These two plugins take memory for the pixels as they are opened, so the size is read before.
    """
    stream.seek(0)
    head = stream.read(30)
    if kind is WEBP and len(head) == 30:
        if head[12:16] == b"VP8X":
            return [(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)]
        if head[12:16] == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return [((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)]
        width, height = struct.unpack_from("<HH", head, 26)
        return [(width & 0x3FFF, height & 0x3FFF)]
    if kind is ICO:
        stream.seek(6)
        entries = stream.read(16 * int.from_bytes(head[4:6], "little"))
        return [_icon_size(stream, entries[k + 12 : k + 16]) for k in range(0, len(entries) - 15, 16)]
    return []


def lacks_end(kind: FileKind, stream: IO[bytes]) -> bool:
    """Return whether a file that was not decoded ends before its end mark, or before its stated length."""
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - 64))
    tail = stream.read()
    if kind is WEBP:
        stream.seek(4)
        return int.from_bytes(stream.read(4), "little") + 8 > length
    return {PNG: b"IEND", GIF: b";", JPEG: b"\xff\xd9"}.get(kind, b"") not in tail


def _icon_size(stream: IO[bytes], offset: bytes) -> tuple[int, int]:
    stream.seek(int.from_bytes(offset, "little"))
    header = stream.read(24).ljust(24, b"\0")
    if header.startswith(b"\x89PNG"):
        width, height = struct.unpack_from(">II", header, 16)
    else:
        width, height = struct.unpack_from("<ii", header, 4)
        height //= 2  # the picture and its mask, one above the other
    return abs(width), abs(height)
