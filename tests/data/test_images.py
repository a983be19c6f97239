"""`ImageSet` refuses what does not fit together, splits evenly, and knows its content and statistics."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import global_random_states, image_set, random_images

from firstlight.data.images import ImageSet, statistics
from firstlight.errors import InputError
from firstlight.machine.streams import stream


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(6, 3, 8, 8)}, "uint8"),
        ({"images": torch.zeros(6, 8, 8, dtype=torch.uint8)}, "N×C×H×W"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, "int64 labels"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"shape \(6,\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, 4, 0])}, "outside 0…3"),
        ({"labels": torch.tensor([0, 1, 2, 3, -1, 0])}, "outside 0…3"),
        ({"mean": (0.5,)}, "3 numbers each"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "3 numbers each"),
        ({"names": ["one"] * 7}, "6 names, not 7"),
        ({"masks": torch.ones(6, 8, 7, dtype=torch.bool)}, "masks"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(image_set(6), **changes)


def unbalanced(counts: list[int]) -> ImageSet:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=stream(3, "shuffle"))]
    pixels = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    names, classes = [str(number) for number in range(len(labels))], tuple("abcdefgh"[: len(counts)])
    parts = {"labels": labels, "classes": classes, "names": names, "masks": pixels[:, 0] % 2 == 0}
    return replace(image_set(1), images=pixels, **parts)


@pytest.mark.parametrize(
    "held_out", [[0] * 6, [1, 0, 0, 0, 0, 0], [6, 4, 2, 1, 0, 0], [23, 14, 9, 3, 1, 0], [49, 30, 20, 7, 3, 0]]
)
def test_a_split_gives_each_class_its_share(held_out: list[int]) -> None:
    images = unbalanced([50, 30, 20, 7, 3, 0])
    rest, held = images.split(sum(held_out), stream(0, "validation"))
    assert torch.bincount(held.labels, minlength=6).tolist() == held_out
    assert sorted([*map(int, rest.names), *map(int, held.names)]) == list(range(110))
    for part in (rest, held):
        indices = [int(name) for name in part.names]
        assert indices == sorted(indices)
        assert part.labels.tolist() == images.labels[indices].tolist()
        assert part.images[:, 0, 0, 0].tolist() == indices
        assert part.masks is not None and images.masks is not None
        assert torch.equal(part.masks, images.masks[indices])
        assert (part.classes, part.mean, part.std) == (images.classes, images.mean, images.std)


def test_a_split_depends_on_its_stream_alone() -> None:
    images, before = unbalanced([40, 40]), global_random_states()
    first, again, other = (images.split(20, stream(seed, "validation"))[1].names for seed in (0, 0, 1))
    assert first == again != other
    assert global_random_states() == before


@pytest.mark.parametrize("held_out", [-1, 24, 25])
def test_a_split_leaves_images_to_train_on(held_out: int) -> None:
    with pytest.raises(InputError, match="hold"):
        image_set(24).split(held_out, stream(0))


def test_a_subset_keeps_the_order_asked_for() -> None:
    images = replace(image_set(6), images=random_images(6, 3, 8, 6))
    part = images.subset(torch.tensor([4, 0, 4]))
    assert part.names == ["image 4", "image 0", "image 4"]
    assert torch.equal(part.images, images.images[[4, 0, 4]])
    assert part.labels.tolist() == [0, 0, 0]
    assert len(part) == 3 and part.shape == images.shape == (3, 8, 6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_digest_is_that_of_the_bytes(layout: torch.memory_format) -> None:
    pixels, labels = random_images(4096 * 2 + 3, 2, 1, 2), torch.arange(4096 * 2 + 3) % 2
    names = [""] * len(labels)
    images = ImageSet(pixels.to(memory_format=layout), labels, ("a", "b"), (0.5,) * 2, (0.5,) * 2, names)
    content = b"a\0b" + pixels.numpy().tobytes() + labels.numpy().tobytes()
    assert images.digest == hashlib.sha256(content).hexdigest()


def test_statistics_are_those_of_numpy_in_any_order() -> None:
    pixels = random_images(4096 + 7, 3, 4, 5)
    pixels[:, 1] //= 3
    pixels[:, 2] = 250 + pixels[:, 2] % 2
    mean, std = statistics(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-9)
    assert statistics(pixels.flip(0)) == (mean, std)


def test_statistics_of_a_constant_can_be_divided_by_and_nothing_has_none() -> None:
    mean, std = statistics(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == (0.2,) and 0 < std[0] < 1e-6
    with pytest.raises(InputError, match="empty"):
        statistics(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))
