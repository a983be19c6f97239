"""Metadata of image files: the orientation, which is used, and all the rest, which a file is read without."""

from __future__ import annotations

import re
import struct

from PIL import Image

from firstlight.data.image_formats import JPEG, FileKind

_ORIENTATION = 0x0112


def orientation(image: Image.Image) -> int:
    """Return the orientation in the metadata, 1…8, or 1 where there is none.

    It is read here and not by Pillow, which parses a whole block and raises, or warns, on any broken part.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        # A TIFF file: newer versions of Pillow turn the picture as it is decoded, and delete the tag.
        value = tags.get(_ORIENTATION)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    exif = image.info.get("exif")
    if exif is None:
        # How ImageMagick writes it into PNG: three lines, then hexadecimal digits.
        profile = str(image.info.get("Raw profile type exif", ""))
        digits = "".join(profile.split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch(r"([0-9a-fA-F]{2})+", digits) else b""
    value = _orientation_in_exif(exif) if isinstance(exif, bytes) else None
    if value is None:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        xmp = xmp if isinstance(xmp, bytes) else str(xmp).encode(errors="replace")
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        value = int(match[1]) if match else 1
    return value if 1 <= value <= 8 else 1


def _orientation_in_exif(exif: bytes) -> int | None:
    """Return the orientation in the first directory of an EXIF block, or None where there is none."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == _ORIENTATION:
                letter = {1: "B", 3: "H", 4: "I"}.get(kind, "H")
                return int(struct.unpack_from(order + letter, exif, entry + 8)[0])
    except struct.error:
        pass
    return None


def without_metadata(kind: FileKind, data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG or PNG file without what decoding does not need, and the EXIF block that was in it."""
    return _bare_jpeg(data) if kind is JPEG else _bare_png(data)


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    bare, exif, offset = [data[:2]], b"", 2
    while data[offset : offset + 1] == b"\xff" and len(data) >= offset + 4:
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        segment = data[offset : offset + 2 + length]
        if marker == 0xDA:  # the scan: pixels from here on
            break
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        # APP0 (JFIF) and APP14 (Adobe) say how colours are coded; the other APPn and the comment do not.
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            bare.append(segment)
        offset += 2 + length
    return b"".join([*bare, data[offset:]]), exif


def _bare_png(data: bytes) -> tuple[bytes, bytes]:
    bare, exif, offset = [data[:8]], b"", 8
    while offset + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            bare.append(data[offset : offset + 12 + length])
        elif name == b"eXIf":
            exif = exif or data[offset + 8 : offset + 8 + length]
        offset += 12 + length
    return b"".join(bare), exif
