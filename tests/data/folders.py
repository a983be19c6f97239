"""Small folders of pictures, made with Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, *, size: tuple[int, int] = (40, 36), seed: int | None = None) -> Path:
    """Write a picture of noise about one grey level; by default another for every file name."""
    seed = zlib.crc32("/".join(path.parts[-3:]).encode(errors="surrogateescape")) if seed is None else seed
    draws = np.random.default_rng(seed)
    level = int(draws.integers(40, 200))
    pixels = draws.integers(level - 40, level + 40, (size[1], size[0], 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, counts: Mapping[str, int], *, suffix: str = ".png") -> Path:
    """Write so many pictures into each sub-folder, named 0, 1, …"""
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number}{suffix}")
    return root


def scene(seed: int) -> Image.Image:
    """Return a picture whose detail falls with frequency, as that of photos does."""
    draws = np.random.default_rng(seed)
    total = np.zeros((192, 256, 3))
    for cells in (3, 6, 12, 24):
        coarse = Image.fromarray(draws.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        total += np.asarray(coarse.resize((256, 192), Image.Resampling.BICUBIC), float) * 3 / cells
    total -= total.min()
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))
