"""The compiled operations equal their plain twins wherever they serve: a sample of a wide grid of shapes.

1 to 1,024 channels, batches of 1 to 513, odd and even sides. A short sample runs with the tests, all of it
under `make soak` and, with the sanitisers, under `make sanitise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import nn

from firstlight.machine.kernels import convolution, library, normalisation
from firstlight.machine.streams import stream
from firstlight.models.blocks import ACTIVATIONS, ConvBlock
from tests.machine.plain_twin import (
    BF16,
    FP32,
    LAYOUT,
    check_convolution,
    check_norm,
    drawn,
    error,
)

CHANNELS = (1, 3, 16, 17, 32, 48, 64, 144, 160, 512, 1008, 1024)
COUNTS = (1, 2, 5, 64, 513)
SIDES = (1, 2, 3, 4, 5, 8, 13, 32)
WAYS = ((1, False), (1, True), (2, False))
"""Stride, and whether a max-pool follows."""
MOST_VALUES, MOST_PRODUCTS = 2**20, 2**29
SHORT, LONG = 14, 150
KERNELS = {"bf16": ("compiled", BF16), "avx2": ("avx2", FP32), "avx512": ("avx512", FP32)}
"""FIRSTLIGHT_KERNELS and the number format."""

Case = tuple[int, int, int, int, int, int, bool]


def sample(multiples: bool) -> list[Case]:
    """Draw cases of the grid that a core computes in a moment, each way in its turn.

    multiples: only of numbers of channels that the kernels serve; else one of the two is none.
    """
    sizes = [
        (count, inputs, outputs, height, width)
        for inputs, outputs in product(CHANNELS, CHANNELS)
        if (inputs % 16 == outputs % 16 == 0) == multiples
        for count, height, width in product(COUNTS, SIDES, SIDES)
        if count * height * width * max(inputs, outputs) <= MOST_VALUES
        and count * height * width * inputs * outputs * 9 <= MOST_PRODUCTS
    ]
    order = torch.randperm(len(sizes), generator=stream(0, f"grid, {multiples}"))
    drawn_cases: list[Case] = []
    for index in order.tolist():
        stride, pool = WAYS[len(drawn_cases) % len(WAYS)]
        if not (pool and any(side % 2 for side in sizes[index][3:])):
            drawn_cases.append((*sizes[index], stride, pool))
    return drawn_cases[:LONG]


def cases(multiples: bool) -> list[object]:
    return [
        pytest.param(case, marks=[] if number < SHORT else pytest.mark.soak, id="-".join(map(str, case)))
        for number, case in enumerate(sample(multiples))
    ]


@pytest.fixture(params=KERNELS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """Have the compiled operations of one kind and return their number format; skip where they cannot run."""
    choice, dtype = KERNELS[request.param]
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", choice)
    library.load.cache_clear()
    words = library.load(dtype).words
    if not words.startswith("compiled for AVX2" if choice == "avx2" else "compiled for AVX-512"):
        library.load.cache_clear()
        pytest.skip(f"this machine takes {words}")
    yield dtype
    library.load.cache_clear()


def test_the_sample_reaches_the_ends_of_the_grid() -> None:
    for drawn_cases in (sample(multiples=True)[:SHORT], sample(multiples=False)[:SHORT]):
        _, _, _, heights, widths, strides, pools = map(set, zip(*drawn_cases, strict=True))
        assert {side % 2 for side in heights | widths} == {0, 1}
        assert strides == {1, 2} and pools == {False, True}
    whole = sample(multiples=True) + sample(multiples=False)
    counts, inputs, outputs = map(set, list(zip(*whole, strict=True))[:3])
    assert counts == set(COUNTS) and inputs == outputs == set(CHANNELS)


@pytest.mark.parametrize("case", cases(multiples=True))
def test_a_convolution_equals_its_twin(case: Case, dtype: torch.dtype) -> None:
    count, inputs, outputs, height, width, stride, pool = case
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    images = torch.empty(count, inputs, height, width)
    assert convolution.serves(conv, images, pool=pool, dtype=dtype) == (stride == 1 or dtype == BF16)
    if stride == 1 or dtype == BF16:
        for large_tiles in (False, True):
            check_convolution(
                images.shape, outputs, dtype=dtype, stride=stride, pool=pool, large_tiles=large_tiles
            )


@pytest.mark.parametrize("case", cases(multiples=True))
def test_a_norm_equals_its_twin(case: Case, dtype: torch.dtype) -> None:
    count, channels, outputs, height, width, stride, branched = case
    activation = list(ACTIVATIONS)[outputs % len(ACTIVATIONS)]
    # Of fewer pixels the variance is so uncertain that both sides divide by their own errors.
    count = max(count, math.ceil(64 / (height * width)))
    shape = (count, channels, height, width)
    check_norm(shape, ACTIVATIONS[activation](), dtype=dtype, training=stride == 1, branched=branched)


@pytest.mark.parametrize("case", cases(multiples=False))
def test_a_block_of_any_number_of_channels_equals_its_twin(case: Case, dtype: torch.dtype) -> None:
    count, inputs, outputs, height, width, _, pool = case
    block = ConvBlock(inputs, outputs, pool=pool).to(memory_format=LAYOUT)
    count = max(count, math.ceil(256 / (height * width)))
    images = drawn(dtype, "images", count, inputs, height, width)
    assert not convolution.serves(block.conv, images, pool=pool, dtype=dtype)
    assert normalisation.serves(block.norm, block[-1], images, dtype) == (outputs % 16 == 0)
    with torch.autocast("cpu", BF16, enabled=dtype == BF16):
        found = block(images)
    found.float().sum().backward()
    block.double()
    x = block.conv(images.detach().double())
    plain = block[-1](block.norm(block.pool(x) if pool else x))
    assert error(found, plain) < (0.02 if dtype == BF16 else 1e-4)
