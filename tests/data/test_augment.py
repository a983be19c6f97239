"""Every augmentation equals the plain one, image by image, and its draws cover their range evenly."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import global_random_states, random_images
from torch import Tensor

from firstlight.data.augment import Augmentation, Crop, Cutout, FlipLR, augment, normalise
from firstlight.errors import InputError
from firstlight.machine.streams import stream

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SHAPES = [(3, 8, 8), (3, 7, 10), (1, 9, 6)]
MODES = {"reflect": "reflect", "zero": "constant"}


def crop(image: npt.NDArray[np.uint8], spec: Crop, top: int, left: int) -> npt.NDArray[np.uint8]:
    margins = ((0, 0), (spec.pad, spec.pad), (spec.pad, spec.pad))
    padded = np.pad(image, margins, mode=MODES[spec.padding])  # type: ignore[call-overload]
    window = padded[:, top : top + spec.size, left : left + spec.size]
    assert window.shape[1:] == (spec.size, spec.size)
    return window  # type: ignore[no-any-return]


def every_draw(augmentation: Augmentation, height: int, width: int) -> Tensor:
    """Return each draw there can be, once, as seen in many samples."""
    drawn = augmentation.sample(torch.arange(4000), height, width, partial(stream, 0, "every"), 0)
    return torch.stack([torch.tensor(row) for row in sorted(set(map(tuple, drawn.tolist())))])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(("size", "pad"), [(6, 0), (6, 2), (8, 4), (1, 5), (11, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_equals_numpy(
    shape: tuple[int, int, int], size: int, pad: int, padding: str, layout: torch.memory_format
) -> None:
    spec = Crop(size, pad=pad, padding=padding)
    if size > min(shape[1:]) + 2 * pad:
        with pytest.raises(InputError):
            spec.sample(torch.arange(2), *shape[1:], partial(stream, 0), 0)
        return
    draws = every_draw(spec, *shape[1:])
    images = random_images(len(draws), *shape)
    found = spec.apply(images.to(memory_format=layout), draws)
    expected = [crop(i, spec, *d) for i, d in zip(images.numpy(), draws.tolist(), strict=True)]
    assert found.dtype == torch.uint8
    assert tuple(found.shape[2:]) == spec.output_size(*shape[1:])
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_flip_equals_numpy(shape: tuple[int, int, int], layout: torch.memory_format) -> None:
    draws = FlipLR().sample(torch.arange(20), *shape[1:], partial(stream, 0), 0)
    assert set(draws.flatten().tolist()) == {0, 1}
    images = random_images(20, *shape)
    found = FlipLR().apply(images.to(memory_format=layout), draws)
    expected = [i[:, :, ::-1] if d else i for i, [d] in zip(images.numpy(), draws.tolist(), strict=True)]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))
    assert FlipLR().output_size(*shape[1:]) == shape[1:]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_cutout_is_a_whole_square_of_zeros(
    shape: tuple[int, int, int], size: int, layout: torch.memory_format
) -> None:
    spec = Cutout(size)
    draws = every_draw(spec, *shape[1:])
    # No pixel is zero before, so every zero is the cutout's.
    images = (random_images(len(draws), *shape).float() + 1).to(memory_format=layout)
    expected = images.clone()
    for image, (top, left) in zip(expected, draws.tolist(), strict=True):
        image[:, top : top + size, left : left + size] = 0
    found = spec.apply(images, draws)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)
    zeros = (found == 0).flatten(2).sum(2)
    assert zeros.unique().tolist() == [size * size]


def test_the_cutout_has_the_colour_of_the_mean() -> None:
    images = random_images(6)
    spec = Cutout(3)
    draws = spec.sample(torch.arange(6), 8, 8, partial(stream, 0), 0)
    found = augment(images, [spec], [draws], MEAN, STD)
    colours = torch.tensor(MEAN).view(3, 1, 1)
    denormalised = found * torch.tensor(STD).view(3, 1, 1) + colours
    for image, (top, left) in zip(denormalised, draws.tolist(), strict=True):
        square = image[:, top : top + 3, left : left + 3]
        assert torch.equal(square, colours.expand_as(square))


@pytest.mark.parametrize(
    ("spec", "choices"),
    [
        (Crop(8, pad=4), (9, 9)),
        (Crop(6, pad=1), (3, 5)),
        (FlipLR(), (2,)),
        (Cutout(8), (1, 3)),
        (Cutout(3), (6, 8)),
    ],
)
def test_draws_cover_their_range_evenly(spec: Augmentation, choices: tuple[int, ...]) -> None:
    height, width = (8, 8) if choices == (9, 9) else (6, 8) if isinstance(spec, Crop) else (8, 10)
    count = 400 * int(np.prod(choices))
    draws = spec.sample(torch.arange(count), height, width, partial(stream, 1, "uniform"), 0)
    assert draws.dtype == torch.int64
    assert tuple(draws.shape) == (count, len(spec.columns))
    seen, counts = draws.unique(dim=0, return_counts=True)
    # All combinations are there and nothing else, so rows and columns are independent too.
    assert [tuple(row) for row in seen.tolist()] == list(itertools.product(*map(range, choices)))
    chi_square = float(((counts - 400) ** 2 / 400).sum())
    freedom = len(counts) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 1e-9


def test_draws_come_from_the_given_stream_alone() -> None:
    before = global_random_states()
    for spec in (Crop(8), FlipLR(), Cutout(3)):
        first, again, other = (
            spec.sample(torch.arange(50), 8, 8, partial(stream, seed), 0) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert global_random_states() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_equals_its_formula(dtype: torch.dtype) -> None:
    images = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    found = normalise(images, MEAN, STD, dtype)
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
    expected = (images.numpy() / 255 - mean) / std
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 10)])
def test_the_pipeline_equals_crop_flip_normalise_cutout(shape: tuple[int, int, int]) -> None:
    images = random_images(40, *shape)
    cropping = Crop(8, pad=4)
    specs: list[Augmentation] = [cropping, FlipLR(), Cutout(3)]
    draws, (height, width) = [], shape[1:]
    for place, spec in enumerate(specs):
        draws.append(spec.sample(torch.arange(40), height, width, partial(stream, 0, place), 0))
        height, width = spec.output_size(height, width)
    found = augment(images, specs, draws, MEAN, STD)
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
    for number, image in enumerate(images.numpy()):
        expected = crop(image, cropping, *draws[0][number].tolist())
        expected = expected[:, :, ::-1] if draws[1][number, 0] else expected
        pixels = expected / 255
        top, left = draws[2][number].tolist()
        pixels[:, top : top + 3, left : left + 3] = mean
        np.testing.assert_allclose(found[number].numpy(), (pixels - mean) / std, rtol=1e-5, atol=1e-6)


def test_without_augmentations_images_are_normalised() -> None:
    images = random_images(3)
    assert torch.equal(augment(images, [], [], MEAN, STD), normalise(images, MEAN, STD))


def test_a_crop_after_normalisation_is_refused() -> None:
    images = random_images(2)
    specs = (Cutout(2), FlipLR())
    draws = [spec.sample(torch.arange(2), 8, 8, partial(stream, 0), 0) for spec in specs]
    with pytest.raises(InputError, match="FlipLR"):
        augment(images, specs, draws, MEAN, STD)


@pytest.mark.parametrize("size, pad, padding", [(0, 4, "zero"), (4, -1, "zero"), (4, 4, "wrap")])
def test_impossible_crops_are_refused(size: int, pad: int, padding: str) -> None:
    with pytest.raises(InputError):
        Crop(size, pad=pad, padding=padding)


@pytest.mark.parametrize(
    ("spec", "height", "width"),
    [(Crop(20, pad=4), 8, 32), (Crop(20, pad=4), 32, 8), (Crop(4, pad=8), 8, 32), (Cutout(9), 8, 32)],
)
def test_what_is_too_large_for_the_image_is_refused(spec: Augmentation, height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"{height}×{width}"):
        spec.sample(torch.arange(1), height, width, partial(stream, 0), 0)


def test_an_empty_cutout_is_refused() -> None:
    with pytest.raises(InputError):
        Cutout(0)
