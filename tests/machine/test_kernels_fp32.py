"""The compiled operations in fp32, on AVX2 and AVX-512, compute what the plain ones do, in training alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from firstlight.machine import machine
from firstlight.machine.kernels import convolution, library, normalisation
from firstlight.machine.streams import seeded, stream
from firstlight.models.blocks import ACTIVATIONS, ConvBlock
from tests.machine import plain_twin
from tests.machine.plain_twin import FP32, LAYOUT, check_convolution, check_norm, on_threads
from tests.machine.test_kernels import asked_for, calls, path_with


@pytest.fixture(params=["avx2", "avx512"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the compiled operations for one instruction set; skip where the chip has it not."""
    asked_for(monkeypatch, request.param)
    words = library.load(FP32).words
    if not words.startswith(f"compiled for {'AVX2' if request.param == 'avx2' else 'AVX-512'}"):
        library.load.cache_clear()
        pytest.skip(f"this machine takes {words}")
    yield
    library.load.cache_clear()


drawn = functools.partial(plain_twin.drawn, FP32)


# Batches, channels and sides at which tiles, blocks of tiles and vectors of channels come out uneven.
SHAPES = [
    *[(3, 16, 32, 8, 6), (1, 32, 16, 2, 4), (5, 48, 80, 4, 4), (7, 64, 64, 6, 2), (2, 128, 64, 16, 16)],
    *[(513, 16, 16, 2, 2), (1, 1024, 16, 4, 4), (1, 16, 1024, 4, 4), (2, 160, 160, 10, 12)],
]
ODD = [(3, 16, 32, 7, 6), (5, 48, 16, 3, 3), (2, 32, 80, 2, 5), (4, 64, 64, 1, 1)]


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width", "pool"),
    [(*shape, pool) for shape in SHAPES for pool in (False, True)] + [(*shape, False) for shape in ODD],
)
def test_a_convolution_and_its_gradients_equal_the_plain_ones(
    count: int, inputs: int, outputs: int, height: int, width: int, pool: bool, compiled: None
) -> None:
    check_convolution((count, inputs, height, width), outputs, dtype=FP32, pool=pool)


def test_any_number_of_threads_gives_the_same_bits(compiled: None) -> None:
    images = drawn("images", 5, 48, 12, 12).requires_grad_()
    weight = drawn("weight", 80, 48, 3, 3).requires_grad_()
    found = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            result = convolution.convolve(images, weight, pool=True, dtype=FP32)
            found.append([result, *torch.autograd.grad(result.sum(), (images, weight))])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_avx2_and_avx512_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for choice in ("avx2", "avx512"):
        asked_for(monkeypatch, choice)
        if not library.load(FP32).words.startswith("compiled for AVX" + choice[3:].replace("512", "-512")):
            pytest.skip(f"this machine takes {library.load(FP32).words}")
        with seeded(0, "weights"):
            block = ConvBlock(48, 80, pool=True, activation="silu")
        images = drawn("images", 5, 48, 10, 12).requires_grad_()
        outputs = block(images)
        found.append([outputs, *torch.autograd.grad(outputs.sum(), (images, *block.parameters()))])
    library.load.cache_clear()
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (3, 2)])
def test_what_is_not_a_number_is_passed_on(place: tuple[int, int], pool: bool, compiled: None) -> None:
    images = drawn("images", 1, 16, 4, 4)
    images[0, 3, place[0], place[1]] = torch.nan
    found = convolution.convolve(images, torch.ones(16, 16, 3, 3), pool=pool, dtype=FP32)
    assert found.isnan().any()
    norm = nn.BatchNorm2d(16).eval()
    for activation in ACTIVATIONS.values():
        assert normalisation.norm_activate(found, norm, activation(), dtype=FP32).isnan().any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 16, 6, 6), (3, 48, 2, 2), (2, 128, 32, 32)])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
@pytest.mark.parametrize("branched", [False, True])
def test_norm_and_activation_equal_the_plain_ones(
    shape: tuple[int, int, int, int], training: bool, activation: str | None, branched: bool, compiled: None
) -> None:
    activate = None if activation is None else ACTIVATIONS[activation]()
    check_norm(shape, activate, dtype=FP32, training=training, branched=branched)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_far_from_zero_an_activation_is_nothing_or_the_value_itself(activation: str, compiled: None) -> None:
    images = torch.tensor([-1e30, -3e4, -300.0, -30.0, 30.0, 300.0, 3e4, 1e10])
    images = images.view(-1, 1, 1, 1).expand(-1, 16, 1, 1).contiguous(memory_format=LAYOUT).requires_grad_()
    norm = nn.BatchNorm2d(16, eps=0.0).eval()
    found = normalisation.norm_activate(images, norm, ACTIVATIONS[activation](), dtype=FP32)
    torch.testing.assert_close(found, images.relu(), rtol=1e-6, atol=1e-6)
    found.sum().backward()
    torch.testing.assert_close(images.grad, (images > 0).float(), rtol=0, atol=1e-6)


def test_a_block_takes_them_where_it_learns(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    block, images = ConvBlock(16, 32, pool=True), drawn("images", 2, 16, 8, 8)
    seen = calls(monkeypatch)
    block.eval()(images)
    assert seen == []
    found = block.train()(images)
    assert seen == ["transform_filters", "convolve", "norm_sums", "norm_activate"]
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", "plain")
    library.load.cache_clear()
    torch.testing.assert_close(found, block(images), rtol=1e-4, atol=1e-4)


def test_the_precision_is_chosen_by_the_operation_that_will_be_taken(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(monkeypatch)
    machine._convolution(FP32)()
    assert "convolve_filter_gradient" in seen


def test_a_limit_that_was_set_for_torch_holds_here_too(compiled: None) -> None:
    code = (
        "import torch; from firstlight.machine.kernels.library import load; print(load(torch.float32).words)"
    )
    assert path_with(code, FIRSTLIGHT_KERNELS="", ATEN_CPU_CAPABILITY="avx2").startswith("compiled for AVX2")
    assert path_with(code, ATEN_CPU_CAPABILITY="default") == "plain operations: no AVX2 here"


def test_filters_that_are_transformed_once_give_the_same_bits(compiled: None) -> None:
    weight = torch.randn(32, 16, 3, 3, generator=stream(0, "weight"))
    filters = convolution.FixedFilters(weight)
    for count, pool in ((1, False), (3, True)):
        images = drawn("images", count, 16, 8, 12)
        expected = convolution.convolve(images, weight, pool=pool, dtype=FP32)
        assert torch.equal(filters.convolve(images, pool=pool), expected)


def test_kernels_are_built_once_they_are_in_the_cache(
    compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path))
    library.load.cache_clear()
    assert not library.is_built(FP32)
    assert library.load(FP32) and library.is_built(FP32)
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", "plain")
    assert not library.is_built(FP32)
