"""Near duplicates: copies are found, different pictures are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from folders import scene
from PIL import Image, ImageDraw, ImageFont, ImageOps

from firstlight.data.near_duplicates import groups_of, near_pairs


def near_groups(pictures: np.ndarray) -> list[list[int]]:
    return groups_of(len(pictures), [(pair.first, pair.second) for pair in near_pairs(pictures)])


def thumbnails(*pictures: Image.Image) -> np.ndarray:
    small = [picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in small])


def recompressed(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream)


@pytest.mark.parametrize(
    "copy",
    [
        recompressed,
        lambda picture: picture.resize((128, 96)),
        lambda picture: picture.crop((10, 8, 246, 184)),
        ImageOps.mirror,
    ],
    ids=["recompressed", "half size", "slightly cropped", "mirrored"],
)
def test_a_copy_is_found_among_others(copy: Callable[[Image.Image], Image.Image]) -> None:
    others = [scene(seed) for seed in range(40)]
    assert near_groups(thumbnails(*others, copy(others[7]))) == [[7, 40]]


def test_different_scenes_and_plain_colours_are_no_copies() -> None:
    draws = np.random.default_rng(0)
    plain = [Image.new("RGB", (64, 64), tuple(map(int, draws.integers(0, 256, 3)))) for _ in range(200)]
    assert near_groups(thumbnails(*[scene(seed) for seed in range(100)], *plain)) == []


def test_different_digits_on_white_are_no_copies() -> None:
    digits = []
    for digit in range(10):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).text((16, 4), str(digit), "black", ImageFont.load_default(48))
        digits.append(picture)
    assert near_groups(thumbnails(*digits)) == []


def test_only_a_mirror_image_is_called_mirrored() -> None:
    one = scene(3)
    pairs = near_pairs(thumbnails(one, recompressed(one), ImageOps.mirror(one)))
    assert [(pair.first, pair.second, pair.is_mirrored) for pair in pairs] == [
        (0, 1, False),
        (0, 2, True),
        (1, 2, True),
    ]
