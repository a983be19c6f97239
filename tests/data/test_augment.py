"""Every augmentation equals the plain one, image by image, and its draws cover their range evenly."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import global_random_states, random_images
from torch import Tensor

from firstlight.data.augment import Augmentation, Crop, Cutout, FlipLR, Jitter, augment, normalise
from firstlight.errors import InputError
from firstlight.machine.streams import stream

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
LEVEL, SPREAD = (np.array(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
MODES = {"reflect": "reflect", "zero": "constant"}
sizes = pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 10), (1, 9, 6)])
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def sample(spec: Augmentation, count: int, height: int = 8, width: int = 8) -> Tensor:
    return spec.sample(torch.arange(count), height, width, partial(stream, 0, type(spec).__name__), 0)


def every_draw(spec: Augmentation, height: int, width: int) -> Tensor:
    """Return each draw there can be, once, as seen in many samples."""
    return sample(spec, 4000, height, width).unique(dim=0)


def crop(image: npt.NDArray[np.uint8], spec: Crop, top: int, left: int) -> npt.NDArray[np.uint8]:
    margins = ((0, 0), (spec.pad, spec.pad), (spec.pad, spec.pad))
    padded = np.pad(image, margins, mode=MODES[spec.padding])
    return padded[:, top : top + spec.size, left : left + spec.size]


@layouts
@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize(("size", "pad"), [(6, 0), (6, 2), (8, 4), (1, 5), (11, 3)])
@sizes
def test_crop_equals_numpy(
    shape: tuple[int, int, int], size: int, pad: int, padding: str, layout: torch.memory_format
) -> None:
    spec = Crop(size, pad=pad, padding=padding)
    draws = every_draw(spec, *shape[1:])
    images = random_images(len(draws), *shape)
    windows = spec.apply(images.to(memory_format=layout), draws)
    expected = [crop(i, spec, *d) for i, d in zip(images.numpy(), draws.tolist(), strict=True)]
    assert windows.dtype == torch.uint8
    assert tuple(windows.shape[2:]) == spec.output_size(*shape[1:]) == (size, size)
    np.testing.assert_array_equal(windows.numpy(), np.stack(expected))


@layouts
@sizes
def test_flip_equals_numpy(shape: tuple[int, int, int], layout: torch.memory_format) -> None:
    draws, images = sample(FlipLR(), 20, *shape[1:]), random_images(20, *shape)
    flipped = FlipLR().apply(images.to(memory_format=layout), draws)
    expected = [i[:, :, ::-1] if d else i for i, [d] in zip(images.numpy(), draws.tolist(), strict=True)]
    np.testing.assert_array_equal(flipped.numpy(), np.stack(expected))
    assert FlipLR().output_size(*shape[1:]) == shape[1:]


@layouts
@pytest.mark.parametrize("size", [1, 4, 6])
@sizes
def test_cutout_is_a_whole_square_of_zeros(
    shape: tuple[int, int, int], size: int, layout: torch.memory_format
) -> None:
    draws = every_draw(Cutout(size), *shape[1:])
    # No pixel is zero before, so every zero is the cutout's.
    images = (random_images(len(draws), *shape).float() + 1).to(memory_format=layout)
    expected = images.clone()
    for image, (top, left) in zip(expected, draws.tolist(), strict=True):
        image[:, top : top + size, left : left + size] = 0
    cut = Cutout(size).apply(images, draws)
    assert torch.equal(cut, expected)
    assert cut.is_contiguous(memory_format=layout)
    assert (cut == 0).flatten(2).sum(2).unique().tolist() == [size * size]


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@sizes
def test_jitter_changes_contrast_and_brightness_of_each_image_by_its_draw(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    spec = Jitter(contrast=0.2, brightness=0.5)
    draws = sample(spec, 3000, *shape[1:])
    assert draws.amin(0).tolist() == [-1000, -1000] and draws.amax(0).tolist() == [1000, 1000]
    assert draws.double().mean(0).abs().max() < 50 and draws.double().std(0).sub(577).abs().max() < 20
    images = normalise(random_images(20, *shape), MEAN, STD, dtype).to(memory_format=layout)
    changed = spec.apply(images, draws[:20])
    assert changed.dtype == dtype and changed.is_contiguous(memory_format=layout)
    contrast, brightness = draws[:20].double().mul(0.001).T.reshape(2, 20, 1, 1, 1)
    expected = (1 + 0.2 * contrast) * images.double() + 0.5 * brightness
    torch.testing.assert_close(
        changed, expected.to(dtype), rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    assert torch.equal(Jitter(0.0, 0.0).apply(images, draws[:20]), images)


@pytest.mark.parametrize(
    ("spec", "size", "choices"),
    [
        (Crop(8, pad=4), (8, 8), (9, 9)),
        (Crop(6, pad=1), (6, 8), (3, 5)),
        (FlipLR(), (8, 10), (2,)),
        (Cutout(8), (8, 10), (1, 3)),
        (Cutout(3), (8, 10), (6, 8)),
    ],
)
def test_draws_cover_their_range_evenly_from_the_given_stream_alone(
    spec: Augmentation, size: tuple[int, int], choices: tuple[int, ...]
) -> None:
    before, count = global_random_states(), 400 * int(np.prod(choices))
    draws = spec.sample(torch.arange(count), *size, partial(stream, 1, "uniform"), 0)
    assert global_random_states() == before
    assert draws.dtype == torch.int64 and tuple(draws.shape) == (count, len(spec.columns))
    rows, counts = draws.unique(dim=0, return_counts=True)
    # All combinations are there and nothing else, so rows and columns are independent too.
    assert [tuple(row) for row in rows.tolist()] == list(itertools.product(*map(range, choices)))
    chi_square, freedom = float(((counts - 400) ** 2 / 400).sum()), len(counts) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_equals_its_formula(dtype: torch.dtype) -> None:
    images = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    normalised = normalise(images, MEAN, STD, dtype)
    assert normalised.dtype == dtype and normalised.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    expected = (images.numpy() / 255 - LEVEL) / SPREAD
    np.testing.assert_allclose(normalised.float().numpy(), expected, rtol=tolerance, atol=1e-6)
    assert torch.equal(augment(images, [], [], MEAN, STD, dtype), normalised)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 7, 10)])
def test_the_pipeline_equals_crop_flip_normalise_cutout(shape: tuple[int, int, int]) -> None:
    images, cropping = random_images(40, *shape), Crop(8, pad=4)
    specs: list[Augmentation] = [cropping, FlipLR(), Cutout(3)]
    draws = [sample(cropping, 40, *shape[1:]), sample(specs[1], 40), sample(specs[2], 40)]
    batch = augment(images, specs, draws, MEAN, STD)
    for number, image in enumerate(images.numpy()):
        expected = crop(image, cropping, *draws[0][number].tolist())
        pixels = (expected[:, :, ::-1] if draws[1][number, 0] else expected) / 255
        top, left = draws[2][number].tolist()
        pixels[:, top : top + 3, left : left + 3] = LEVEL
        np.testing.assert_allclose(batch[number].numpy(), (pixels - LEVEL) / SPREAD, rtol=1e-5, atol=1e-6)


def test_a_flip_after_normalisation_is_refused() -> None:
    specs = (Cutout(2), FlipLR())
    with pytest.raises(InputError, match="FlipLR"):
        augment(random_images(2), specs, [sample(spec, 2) for spec in specs], MEAN, STD)


def test_impossible_settings_are_refused() -> None:
    for size, pad, padding in ((0, 4, "zero"), (4, -1, "zero"), (4, 4, "wrap")):
        with pytest.raises(InputError):
            Crop(size, pad=pad, padding=padding)
    with pytest.raises(InputError):
        Cutout(0)
    for contrast, brightness in ((1.0, 0.1), (-0.1, 0.1), (0.1, -0.1), (0.1, math.nan)):
        with pytest.raises(InputError):
            Jitter(contrast, brightness)


def test_what_is_too_large_for_the_image_is_refused() -> None:
    too_large = (
        (Crop(20, pad=4), 8, 32),
        (Crop(20, pad=4), 32, 8),
        (Crop(4, pad=8), 8, 32),
        (Cutout(9), 8, 32),
    )
    for spec, height, width in too_large:
        with pytest.raises(InputError, match=f"{height}×{width}"):
            sample(spec, 1, height, width)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_a_crop_without_a_size_keeps_that_of_the_image(padding: str) -> None:
    images, order = random_images(6, height=12, width=9), torch.arange(6)
    free, fixed = Crop(None, pad=3, padding=padding), Crop(12, pad=3, padding=padding)
    draws = free.sample(order, 12, 9, lambda epoch: stream(0, epoch), 0)
    moved = free.apply(images, draws)
    assert moved.shape == images.shape and free.output_size(12, 9) == (12, 9)
    assert not torch.equal(moved, images) and draws.max() <= 6
    square = random_images(6, height=12, width=12)
    assert torch.equal(free.apply(square, draws), fixed.apply(square, draws))
