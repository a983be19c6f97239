"""Whole pictures for people to look at, in their own shape, where a network sees a square."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from firstlight.data.folder_picture import quiet
from firstlight.data.folder_pixels import threads
from firstlight.data.image_files import open_upright
from firstlight.errors import InputError

SIDE = 240
"""Pixels of the longer side."""
_SQUARE = 1.02
"""Longer by shorter side of a picture of which a central square shows all."""


def small_jpeg(path: Path, side: int = SIDE) -> tuple[bytes, tuple[int, int]]:
    """Return a picture, upright and whole, as a JPEG file of at most `side` pixels, with width and height.

    Raises InputError as `open_upright` does.
    """
    small = open_upright(path, side).convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue(), small.size


def whole(paths: Sequence[Path | None]) -> list[bytes]:
    """Return each picture as `small_jpeg` does: nothing of one that is square, or cannot be read any more."""

    def one(path: Path | None) -> bytes:
        try:
            data, (width, height) = (b"", (1, 1)) if path is None else small_jpeg(path)
        except (InputError, OSError, MemoryError):
            return b""
        return data if max(width, height) > _SQUARE * min(width, height) else b""

    with quiet(), ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(one, paths))
