"""An epoch is planned from (seed, epoch) alone, and batches are that plan carried out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pytest import MonkeyPatch
from tiny import CPU, global_random_states, image_set, random_images

from firstlight.data.augment import Crop, Cutout, FlipLR, augment, normalise
from firstlight.data.batches import Batches, in_order, plan_epoch
from firstlight.errors import InputError

AUGMENTATIONS = (Crop(8, pad=2), FlipLR(), Cutout(2))


def test_a_plan_depends_on_seed_and_epoch_alone() -> None:
    before = global_random_states()
    plan = plan_epoch(image_set(24), AUGMENTATIONS, 0, 3)
    for epoch in range(5):
        plan_epoch(image_set(24), AUGMENTATIONS, 0, epoch)
    other = plan_epoch(replace(image_set(24), images=random_images(24, seed=5)), AUGMENTATIONS, 0, 3)
    assert torch.equal(other.order, plan.order) and all(map(torch.equal, other.draws, plan.draws))
    assert global_random_states() == before
    seeds_and_epochs = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
    plans = [plan_epoch(image_set(24), AUGMENTATIONS, *numbers) for numbers in seeds_and_epochs]
    for tensors in zip(*((plan.order, *plan.draws) for plan in plans), strict=True):
        assert len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(plans)


def test_the_first_epochs_have_smaller_images_and_the_same_draws() -> None:
    whole = Batches(image_set(24), 8, AUGMENTATIONS, seed=0, machine=CPU)
    small = Batches(image_set(24), 8, AUGMENTATIONS, seed=0, machine=CPU, sides=(4, 6))
    for epoch, side in enumerate((4, 6, 8)):
        pairs = zip(small.epoch(epoch), whole.epoch(epoch), strict=True)
        for (pictures, labels), (expected, same_labels) in pairs:
            assert pictures.shape == (8, 3, side, side) and torch.equal(labels, same_labels)
            assert pictures.is_contiguous(memory_format=torch.channels_last)
            # Shrinking keeps the mean of what lies within, so of the whole but for its edges.
            assert torch.allclose(pictures.mean((2, 3)), expected.mean((2, 3)), atol=0.1)
    assert torch.equal(pictures, expected)


def test_every_image_comes_once_and_two_of_a_kind_draw_differently() -> None:
    plan = plan_epoch(image_set(24), (*AUGMENTATIONS, Cutout(2)), 0, 0)
    assert sorted(plan.order.tolist()) == list(range(24))
    assert [tuple(drawn.shape) for drawn in plan.draws] == [(24, 2), (24, 1), (24, 2), (24, 2)]
    assert not torch.equal(plan.draws[2], plan.draws[3])


def test_an_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    flips = []
    for epoch in range(4):
        plan = plan_epoch(image_set(24), (Crop(8, pad=2), FlipLR(alternate=True)), 3, epoch)
        flips.append(torch.empty_like(plan.draws[1]).scatter_(0, plan.order[:, None], plan.draws[1]))
    assert torch.equal(flips[1], 1 - flips[0])
    assert torch.equal(flips[2], flips[0]) and torch.equal(flips[3], flips[1])
    assert 0 < int(flips[0].sum()) < 24


def test_the_order_stays_what_finished_runs_saw() -> None:
    assert plan_epoch(image_set(10), (), 0, 0).order.tolist() == [2, 9, 0, 6, 4, 3, 7, 8, 1, 5]
    flips = plan_epoch(image_set(10), (FlipLR(),), 7, 2).draws[0]
    assert flips.flatten().tolist() == [1, 0, 1, 0, 0, 0, 0, 1, 1, 0]


def test_a_later_augmentation_sees_the_size_that_an_earlier_one_leaves() -> None:
    with pytest.raises(InputError, match="4×4"):
        plan_epoch(image_set(4), (Crop(4, pad=0), Cutout(5)), 0, 0)
    plan = plan_epoch(image_set(200), (Crop(4, pad=0), Cutout(3)), 0, 0)
    assert plan.draws[1].unique().tolist() == [0, 1]


def test_batches_carry_out_the_plan_drop_the_short_batch_and_touch_no_global_stream() -> None:
    images, before = image_set(24), global_random_states()
    batches = Batches(images, 7, AUGMENTATIONS, seed=0, machine=CPU)
    plan = plan_epoch(images, AUGMENTATIONS, 0, 1)
    parts = [plan.rows(begin, begin + 7) for begin in (0, 7, 14)]
    assert len(batches) == 3
    for part, (pixels, labels) in zip(parts, batches.epoch(1), strict=True):
        expected = images.images[part.order]
        assert torch.equal(pixels, augment(expected, AUGMENTATIONS, part.draws, images.mean, images.std))
        assert torch.equal(labels, images.labels[part.order]) and labels.dtype == torch.int64
    assert global_random_states() == before


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_goes_on_where_it_was_left(first: int) -> None:
    batches = Batches(image_set(24), 6, AUGMENTATIONS, seed=0, machine=CPU)
    whole, rest = list(batches.epoch(1)), list(batches.epoch(1, first))
    assert len(whole) == 4
    torch.testing.assert_close(rest, whole[first:], rtol=0, atol=0)


@pytest.mark.parametrize("first", [0, 2])
def test_batches_augmented_together_as_on_a_gpu_are_the_same(first: int, monkeypatch: MonkeyPatch) -> None:
    one = Batches(image_set(44), 8, AUGMENTATIONS, seed=0, machine=CPU, sides=(6,))
    together = Batches(image_set(44), 8, AUGMENTATIONS, seed=0, machine=CPU, sides=(6,))
    monkeypatch.setattr(together, "_together", 3)
    for epoch in (0, 1):
        pairs = list(zip(one.epoch(epoch, first), together.epoch(epoch, first), strict=True))
        assert len(pairs) == 5 - first
        for (images, labels), (other_images, other_labels) in pairs:
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
            assert other_images.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_in_the_machines_precision() -> None:
    images, _ = next(Batches(image_set(8), 4, seed=0, machine=replace(CPU, precision="bf16")).epoch(0))
    assert images.dtype == torch.bfloat16 and images.is_contiguous(memory_format=torch.channels_last)


def test_impossible_batch_sizes_are_refused() -> None:
    for size, says in ((25, "larger than the 24"), (0, "at least 1"), (-3, "at least 1")):
        with pytest.raises(InputError, match=says):
            Batches(image_set(24), size, seed=0, machine=CPU)
    assert len(Batches(image_set(24), 24, seed=0, machine=CPU)) == 1


def test_in_order_gives_every_image_once() -> None:
    images = image_set(11)
    batches = list(in_order(images, 4, CPU))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat(batches), normalise(images.images, images.mean, images.std))
