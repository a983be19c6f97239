"""Image files, read into the form in which a network saw its training images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from firstlight.errors import InputError

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return an image file as uint8 C×H×W of the wanted shape.

    The camera's orientation is applied, the largest central window of the wanted aspect is cut, and
    it is resized with anti-aliasing. Raises InputError, naming the file, where it is no readable image.
    """
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            # Pillow only warns of an image that is large enough to fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except _UNREADABLE as error:
        raise InputError(
            f"cannot read {path} as an image: {error}", "Give a JPEG, PNG or another image file."
        ) from None
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(fitted))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
