"""`ImageSet` refuses what does not fit together, splits evenly, and knows its content and statistics."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import global_random_states, image_set, random_images
from torch import Tensor

from firstlight.data.images import ImageSet, statistics
from firstlight.errors import InputError
from firstlight.machine.streams import stream


@pytest.mark.parametrize(
    ("broken", "says"),
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
def test_parts_that_do_not_fit_are_refused(broken: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(image_set(6), **broken)


def test_length_and_shape() -> None:
    images = replace(image_set(5), images=random_images(5, 3, 8, 6))
    assert len(images) == 5
    assert images.shape == (3, 8, 6)


def unbalanced(counts: list[int]) -> ImageSet:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=stream(3, "shuffle"))]
    pixels = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    masks = pixels[:, 0] % 2 == 0
    names = [str(number) for number in range(len(labels))]
    classes = tuple("abcdefgh"[: len(counts)])
    return replace(image_set(1), images=pixels, labels=labels, classes=classes, names=names, masks=masks)


def largest_remainder(counts: list[int], held_out: int) -> list[int]:
    shares = [count * held_out / sum(counts) for count in counts]
    take = [int(share) for share in shares]
    order = sorted(range(len(counts)), key=lambda label: take[label] - shares[label])
    for label in order[: held_out - sum(take)]:
        take[label] += 1
    return take


@pytest.mark.parametrize("held_out", [0, 1, 13, 50, 109])
def test_a_split_gives_each_class_its_share(held_out: int) -> None:
    counts = [50, 30, 20, 7, 3, 0]
    images = unbalanced(counts)
    rest, held = images.split(held_out, stream(0, "validation"))
    assert len(held) == held_out
    assert torch.bincount(held.labels, minlength=6).tolist() == largest_remainder(counts, held_out)
    assert sorted([*map(int, rest.names), *map(int, held.names)]) == list(range(110))
    for part in (rest, held):
        places = [int(name) for name in part.names]
        assert places == sorted(places)
        assert part.labels.tolist() == images.labels[places].tolist()
        assert part.images[:, 0, 0, 0].tolist() == places
        assert part.masks is not None and images.masks is not None
        assert torch.equal(part.masks, images.masks[places])
        assert (part.classes, part.mean, part.std) == (images.classes, images.mean, images.std)


def test_a_split_depends_on_its_stream_alone() -> None:
    images, before = unbalanced([40, 40]), global_random_states()
    first = images.split(20, stream(0, "validation"))[1].names
    torch.rand(3, generator=stream(9))
    assert images.split(20, stream(0, "validation"))[1].names == first
    assert images.split(20, stream(1, "validation"))[1].names != first
    assert global_random_states() == before


@pytest.mark.parametrize("held_out", [-1, 24, 25])
def test_a_split_leaves_images_to_train_on(held_out: int) -> None:
    with pytest.raises(InputError, match="hold"):
        image_set(24).split(held_out, stream(0))


def test_a_subset_keeps_the_order_asked_for() -> None:
    images = image_set(6)
    part = images.subset(torch.tensor([4, 0, 4]))
    assert part.names == ["image 4", "image 0", "image 4"]
    assert torch.equal(part.images, images.images[[4, 0, 4]])
    assert part.labels.tolist() == [0, 0, 0]


def test_the_digest_is_of_the_content() -> None:
    images = image_set(6)

    def changed(tensor: Tensor, *place: int) -> Tensor:
        copy = tensor.clone()
        copy[place] = (copy[place] + 1) % 4
        return copy

    same = replace(images, images=images.images.clone(), names=["other"] * 6, mean=(0.0, 0.0, 0.0))
    assert same.digest == images.digest
    strided = images.images.to(memory_format=torch.channels_last)
    assert replace(images, images=strided).digest == images.digest
    others = [
        replace(images, images=changed(images.images, 5, 2, 7, 7)),
        replace(images, labels=changed(images.labels, 5)),
        replace(images, classes=("class 0", "class 1", "class 2", "class three")),
        images.subset(torch.tensor([1, 0, 2, 3, 4, 5])),
        images.subset(torch.arange(5)),
    ]
    assert len({images.digest, *(other.digest for other in others)}) == 6


def test_the_digest_of_many_images_is_that_of_their_bytes() -> None:
    count = 4096 * 2 + 3
    pixels = random_images(count, 1, 1, 2)
    images = ImageSet(pixels, torch.arange(count) % 2, ("a", "b"), (0.5,), (0.5,), [""] * count)
    content = b"a\0b" + pixels.numpy().tobytes() + images.labels.numpy().tobytes()
    assert images.digest == hashlib.sha256(content).hexdigest()


def test_statistics_are_those_of_numpy() -> None:
    pixels = random_images(4096 + 7, 3, 4, 5)
    pixels[:, 1] //= 3
    pixels[:, 2] = 250 + pixels[:, 2] % 2
    mean, std = statistics(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-9)


def test_statistics_do_not_depend_on_the_order() -> None:
    pixels = random_images(5000, 1, 3, 3)
    assert statistics(pixels) == statistics(pixels.flip(0))


def test_statistics_of_a_constant_can_be_divided_by() -> None:
    mean, std = statistics(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == (0.2,)
    assert 0 < std[0] < 1e-6


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(InputError, match="empty"):
        statistics(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))
