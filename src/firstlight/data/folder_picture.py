"""One picture becomes a row of pixels and a thumbnail; whatever its file holds, this comes to an end."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from firstlight.data.folder_files import Picture
from firstlight.data.image_files import open_upright, pixels_of
from firstlight.data.near_duplicates import SIDE
from firstlight.errors import InputError, printable

THUMBNAIL = (3, SIDE, SIDE)
"""Shape of a thumbnail."""

Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Result:
    """What came out of reading one picture; no row where it could not be read."""

    row: Rows | None
    digest: str
    reason: str = ""
    is_final: bool = True
    thumbnail: Rows | None = None


def read_picture(picture: Picture, shape: tuple[int, int, int], fit: str) -> Result:
    """Return a picture of that shape, and its thumbnail."""
    digest = picture.name  # a file that cannot be read is like no other
    try:
        with picture.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # Decoded once, for both.
        upright = open_upright(picture.path, max(*shape[1:], SIDE))
        row = pixels_of(upright, shape, fit)
        is_small = (shape, fit) == (THUMBNAIL, "stretch")
        thumbnail = row if is_small else _thumbnail(upright)
        return Result(row, digest, thumbnail=thumbnail)
    except InputError as error:
        cause = error.__context__
        is_final = not (isinstance(cause, OSError) and cause.errno)
        return Result(None, digest, _reason(error.message, picture.path), is_final)
    except OSError as error:
        return Result(None, digest, printable(error.strerror or error), is_final=False)
    except Exception as error:  # decoders raise more than they document, and one file must not end the job
        return Result(
            None, digest, printable(f"{type(error).__name__}: {error}"), not isinstance(error, MemoryError)
        )


def _thumbnail(upright: Image.Image) -> Rows:
    """Return a picture as uint8 3×32×32, whatever its shape; averaged first, for speed."""
    small = upright.convert("RGB").resize(THUMBNAIL[:0:-1], Image.Resampling.BICUBIC, reducing_gap=1.0)
    return np.ascontiguousarray(np.array(small).transpose(2, 0, 1))


def _reason(message: str, path: Path) -> str:
    """Return the reader's message without the path, which stands beside it in a list."""
    name = printable(path)
    for words in (f"cannot read {name}: ", f"cannot decode {name}, ", f"{name} is ", name):
        message = message.removeprefix(words)
    return printable(message.replace("\n", " ").strip())


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Pillow's warnings; that of a picture too large for the memory is an error.

    The reader sets that filter too, but threads that set and restore filters disturb each other: this one
    holds for as long as they run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
