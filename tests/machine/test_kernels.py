"""The compiled operations compute what the plain ones do, and step aside where they cannot."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.machine import machine
from firstlight.machine.kernels import convolution, library, normalisation
from firstlight.machine.streams import seeded
from firstlight.models.blocks import ACTIVATIONS, ConvBlock
from firstlight.models.custom_resnet import CustomResNet
from firstlight.models.resnet import BasicBlock
from tests.machine import plain_twin
from tests.machine.plain_twin import (
    BF16,
    LAYOUT,
    NORM,
    check_convolution,
    check_norm,
    error,
    on_threads,
)


@pytest.fixture(params=["compiled", "bf16"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the compiled operations, also where torch's own are faster; skip where they cannot run.

    Once with operands in the best format that the chip has, and once in bf16 where that is another.
    """
    best, path = (asked_for(monkeypatch, wish) for wish in ("compiled", request.param))
    if path.startswith("plain") or (request.param != "compiled" and path == best):
        library.load.cache_clear()
        pytest.skip(f"this machine takes {path}" + (", as tested already" if path == best else ""))
    yield
    library.load.cache_clear()


def asked_for(monkeypatch: pytest.MonkeyPatch, wish: str) -> str:
    """Return in words which kernels are in use where FIRSTLIGHT_KERNELS is `wish`."""
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", wish)
    library.load.cache_clear()
    return library.load().words


drawn = functools.partial(plain_twin.drawn, BF16)


# Batches, channels and sides at which blocks of tiles, of channels and of pairs come out uneven.
SHAPES = [(3, 16, 32, 8, 6), (1, 32, 16, 2, 4), (5, 48, 80, 4, 4), (7, 64, 64, 6, 2), (2, 128, 64, 16, 16)]
ODD = [(3, 16, 32, 7, 6), (5, 48, 16, 3, 3), (2, 32, 80, 2, 5), (4, 64, 64, 1, 1)]


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width", "pool"),
    [(*shape, pool) for shape in SHAPES for pool in (False, True)] + [(*shape, False) for shape in ODD],
)
@pytest.mark.parametrize("large_tiles", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_convolution_and_its_gradients_equal_the_plain_ones(
    count: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    pool: bool,
    threads: int,
    large_tiles: bool,
    compiled: None,
) -> None:
    shape = (count, inputs, height, width)
    check_convolution(shape, outputs, dtype=BF16, pool=pool, threads=threads, large_tiles=large_tiles)


@pytest.mark.parametrize(("count", "inputs", "outputs", "height", "width"), SHAPES + ODD)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_convolution_of_stride_2_and_its_gradients_equal_the_plain_ones(
    count: int, inputs: int, outputs: int, height: int, width: int, threads: int, compiled: None
) -> None:
    shape = (count, inputs, height, width)
    check_convolution(shape, outputs, dtype=BF16, stride=2, threads=threads)


@pytest.mark.parametrize("sizes", [(2.0**-40, 2.0**-20, 2.0**-30), (2.0**30, 2.0**20, 2.0**-60)])
@pytest.mark.parametrize(("stride", "pool"), [(1, False), (1, True), (2, False)])
def test_values_of_any_size_are_convolved(
    sizes: tuple[float, ...], stride: int, pool: bool, compiled: None
) -> None:
    # 544 channels: longer sums than one chain of products in fp16.
    values = [(2, 544, 6, 6), (16, 544, 3, 3), (2, 16, 6, 6) if stride == 1 and not pool else (2, 16, 3, 3)]
    names = ("images", "weight", "direction")

    def made(sizes: tuple[float, ...]) -> tuple[Tensor, ...]:
        images, weight, direction = (
            drawn(name, *shape) * size for name, shape, size in zip(names, values, sizes, strict=True)
        )
        images.requires_grad_()
        weight = weight.float().requires_grad_()
        found = convolution.convolve(images, weight, stride, pool=pool)
        return found, *torch.autograd.grad(found, (images, weight), direction)

    # All sizes are powers of two, so they change no digit.
    image, weight, direction = sizes
    for one, other, size in zip(
        made(sizes),
        made((1.0, 1.0, 1.0)),
        (image * weight, direction * weight, image * direction),
        strict=True,
    ):
        assert torch.equal(one, other * size)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_largest_sums_there_can_be_do_not_overflow(stride: int, compiled: None) -> None:
    images = torch.full((1, 1024, 4, 4), 3.0).to(BF16).contiguous(memory_format=LAYOUT).requires_grad_()
    weight = torch.full((16, 1024, 3, 3), 0.5, requires_grad=True)
    found = convolution.convolve(images, weight, stride)
    expected = F.conv2d(images.float(), weight, stride=stride, padding=1)
    assert error(found, expected) < 0.05  # equal values all round the same way
    direction = torch.ones_like(found)
    mine = torch.autograd.grad(found, (images, weight), direction)
    theirs = torch.autograd.grad(expected, (images, weight), direction.float())
    assert all(error(one, other) < 0.05 for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("stride", "pool", "side", "large_tiles"),
    [
        (1, True, 12, False),
        (1, True, 12, True),
        (1, False, 6, True),
        (1, True, 6, False),
        (1, True, 10, False),
        (2, False, 12, False),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(
    stride: int, pool: bool, side: int, large_tiles: bool, compiled: None
) -> None:
    images = drawn("images", 5, 48, side, side).requires_grad_()
    weight = drawn("weight", 80, 48, 3, 3).float().requires_grad_()
    found = []
    for threads in (1, 2, 3, 4):
        with on_threads(threads):
            result = convolution.convolve(images, weight, stride, pool=pool, large_tiles=large_tiles)
            found.append([result, *torch.autograd.grad(result.sum(), (images, weight))])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("side", [2, 4, 6])  # one for each side of a tile
def test_a_pooled_gradient_goes_to_the_places_that_were_largest(side: int, compiled: None) -> None:
    images = (drawn("images", 2, 16, side, side) * 3).round()  # sums of four are exact in bf16
    weight = torch.zeros(16, 16, 3, 3)
    weight[range(16), range(16), 1, 1] = 1.0  # the identity
    images.requires_grad_()
    found = convolution.convolve(images, weight, pool=True)
    largest, places = F.max_pool2d(images.detach().float(), 2, return_indices=True)
    assert torch.equal(found.float(), largest)
    found.sum().backward()
    assert images.grad is not None
    expected = F.max_unpool2d(torch.ones_like(largest), places, 2)
    torch.testing.assert_close(images.grad.float(), expected, rtol=0, atol=0.0 if side == 2 else 0.1)


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    ("stride", "pool", "large_tiles"),
    [(1, False, False), (1, False, True), (1, True, False), (1, True, True), (2, False, False)],
)
def test_what_is_not_a_number_is_passed_on(
    place: tuple[int, int], stride: int, pool: bool, large_tiles: bool, compiled: None
) -> None:
    images = drawn("images", 1, 16, 4, 4)
    images[0, 3, place[0], place[1]] = torch.nan
    weight = torch.ones(16, 16, 3, 3)
    found = convolution.convolve(images, weight, stride, pool=pool, large_tiles=large_tiles)
    assert found[0, :, 0, 0].isnan().all()
    norm = nn.BatchNorm2d(16).eval()
    for activation in ACTIVATIONS.values():
        assert normalisation.norm_activate(found, norm, activation())[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 16, 6, 6), (3, 48, 2, 2), (2, 128, 32, 32)])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, None])
@pytest.mark.parametrize("branched", [False, True])
def test_norm_and_activation_equal_the_plain_ones(
    shape: tuple[int, int, int, int], training: bool, activation: str | None, branched: bool, compiled: None
) -> None:
    activate = None if activation is None else ACTIVATIONS[activation]()
    check_norm(shape, activate, dtype=BF16, training=training, branched=branched)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the compiled operations that are called from now on."""
    seen: list[str] = []
    call = library.Kernels.call

    def note(self: library.Kernels, name: str, *arguments: Tensor | float | None) -> None:
        seen.append(name)
        call(self, name, *arguments)

    monkeypatch.setattr(library.Kernels, "call", note)
    return seen


def test_an_activation_alone_takes_them_where_no_gradient_passes(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gelu, images = ACTIVATIONS["gelu"](), drawn("images", 2, 32, 5, 4)
    seen = calls(monkeypatch)
    found = gelu(images)
    assert seen == ["norm_activate"] and found.is_contiguous(memory_format=LAYOUT)
    assert error(found, F.gelu(images.double(), approximate="tanh")) < NORM[BF16]
    for other in (images.float(), images[:, :5], images.clone().requires_grad_()):
        torch.testing.assert_close(gelu(other), F.gelu(other, approximate="tanh"), rtol=0, atol=0)
    assert seen == ["norm_activate"]


def filter_gradients(names: list[str]) -> int:
    """Count them, whatever their tiles."""
    return sum(name in ("convolve_filter_gradient", "large_filter_gradient") for name in names)


def test_a_block_takes_them_in_bf16_alone(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    block, images = ConvBlock(16, 32, pool=True), drawn("images", 2, 16, 8, 8)
    seen = calls(monkeypatch)
    with torch.autocast("cpu", torch.float16):
        block(images.float())
    block.eval()(images.float())
    assert seen == []
    block.train()
    with torch.autocast("cpu", BF16):
        block(images)
    assert seen == ["transform_filters", "convolve", "norm_sums", "norm_activate"]


@pytest.mark.parametrize("large_tiles", [False, True])
def test_a_block_takes_large_tiles_where_it_is_asked_to_and_trains(
    large_tiles: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, images = ConvBlock(16, 32, pool=True, large_tiles=large_tiles), drawn("images", 2, 16, 8, 8)
    has_large = bool(library.load().variant.large_tiles)
    seen = calls(monkeypatch)
    with torch.autocast("cpu", BF16):
        trained = block(images)
        asked = block.eval()(images)
    assert seen.count("large_convolve") == int(large_tiles and has_large)
    assert seen.count("convolve") == 2 - int(large_tiles and has_large)
    assert trained.shape == asked.shape == (2, 32, 4, 4)


def test_the_precision_is_chosen_by_the_operation_that_will_be_taken(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(monkeypatch)
    machine._convolution(BF16)()
    assert filter_gradients(seen) == 1
    assert machine._faster_precision(torch.device("cpu")) == "bf16"


@pytest.mark.parametrize(
    ("outputs", "stride", "expected"),
    [
        (16, 1, {"convolve": 2, "norm_activate": 2}),
        (32, 2, {"convolve_strided": 1, "convolve": 1, "norm_activate": 3}),
    ],
)
def test_a_residual_block_takes_them_and_adds_its_branch_in_one(
    outputs: int, stride: int, expected: dict[str, int], compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, images = BasicBlock(16, outputs, stride), drawn("images", 2, 16, 8, 7)
    with torch.no_grad():
        plain = copy.deepcopy(block)(images.float())
    seen = calls(monkeypatch)
    with torch.autocast("cpu", BF16):
        found = block(images)
    assert {name: seen.count(name) for name in expected} == expected
    assert error(found, plain) < 0.01


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_far_from_zero_an_activation_is_nothing_or_the_value_itself(activation: str, compiled: None) -> None:
    images = torch.tensor([-3e4, -300.0, -30.0, 0.0, 30.0, 300.0, 3e4, 1e10]).to(BF16)
    images = images.view(-1, 1, 1, 1).expand(-1, 16, 1, 1).contiguous(memory_format=LAYOUT).requires_grad_()
    norm = nn.BatchNorm2d(16, eps=0.0).eval()
    found = normalisation.norm_activate(images, norm, ACTIVATIONS[activation]())
    torch.testing.assert_close(found, images.relu(), rtol=0, atol=1e-6)
    found.sum().backward()
    expected = (images > 0).to(BF16)
    expected[3] = 0.5
    torch.testing.assert_close(images.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "convolves", "normalises"),
    [
        ("another activation", False, False),
        ("odd side", False, True),
        ("few channels", False, True),
        ("hooked", False, False),
    ],
)
def test_what_they_cannot_do_is_done_plainly(
    case: str, convolves: bool, normalises: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, height = 3 if case == "few channels" else 16, 7 if case == "odd side" else 8
    block, images = ConvBlock(channels, 16, pool=True), drawn("images", 2, channels, height, 8)
    if case == "hooked":
        block.conv.register_forward_hook(lambda *_: None)
    if case == "another activation":
        block.relu = nn.GELU()  # by the error function, which is not its tanh form
    seen = calls(monkeypatch)
    with torch.autocast("cpu", BF16):
        found = block(images)
    assert ("convolve" in seen, "norm_activate" in seen) == (convolves, normalises)
    with torch.no_grad():
        assert error(found, block(images.float())) < 0.01


def losses(steps: int, in_bf16: bool) -> list[float]:
    with seeded(0, "weights"):
        model = CustomResNet(width=16, bias=False, logit_scale=0.125)
    model.to(memory_format=LAYOUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    images, labels = drawn("images", 32, 3, 32, 32).float(), torch.arange(32) % 10
    found = []
    for _ in range(steps):
        with torch.autocast("cpu", BF16, enabled=in_bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_a_network_learns_as_it_does_in_fp32(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    mine = losses(12, in_bf16=True)
    assert filter_gradients(seen) == 12 * 7 and seen.count("norm_activate_gradient") == 12 * 8
    plain = losses(12, in_bf16=False)
    assert plain[-1] < plain[0] / 2
    assert mine == pytest.approx(plain, rel=0.03)


WORDS = "from firstlight.machine.kernels.library import load; print(load().words)"


def path_with(code: str = WORDS, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_plain_ones_can_be_asked_for() -> None:
    assert path_with(FIRSTLIGHT_KERNELS="plain") == "plain operations: FIRSTLIGHT_KERNELS=plain asks for them"


def test_limits_that_were_set_for_torch_hold_here_too(compiled: None) -> None:
    for limit in ({"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}):
        assert path_with(**limit) == "plain operations: torch is limited to older instructions"


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C++ compiler (no-such-compiler)"), ("false", "failed: ")]
)
def test_without_a_working_compiler_the_plain_ones_serve(
    compiler: str, said: str, compiled: None, tmp_path: Path
) -> None:
    path = path_with(CXX=compiler, FIRSTLIGHT_CACHE=str(tmp_path))
    assert path.startswith("plain operations: ") and said in path and len(path.splitlines()) == 1
    assert not list(tmp_path.iterdir())


COMPILERS = {
    "says much and fails": 'for line in 1 2 3 4; do echo "error: line $line" >&2; done; exit 1',
    "writes no library": 'while [ "$1" != -o ]; do shift; done; echo text > "$2"',
    "writes nothing": "exit 0",
    "is killed": "kill -9 $$",
}
TRAIN = f"""
import torch
from firstlight.models.blocks import ConvBlock
{WORDS}
print(load(torch.float32).words)
block, images = ConvBlock(16, 16), torch.ones(2, 16, 8, 8, requires_grad=True)
block(images).sum().backward()
with torch.autocast("cpu", torch.bfloat16):
    block(images).sum().backward()
"""


@pytest.mark.parametrize("does", COMPILERS)
def test_a_compiler_that_fails_costs_nothing_but_speed_in_one_line(
    does: str, compiled: None, tmp_path: Path
) -> None:
    compiler, cache = tmp_path / "compiler", tmp_path / "cache"
    compiler.write_text(f"#!/bin/sh\n{COMPILERS[does]}\n", encoding="utf-8")
    compiler.chmod(0o755)
    bf16, fp32 = path_with(TRAIN, CXX=str(compiler), FIRSTLIGHT_CACHE=str(cache)).splitlines()
    for words in (bf16, fp32):
        assert words.startswith(f"plain operations: {compiler}")
    assert not list(cache.iterdir())


def test_they_are_compiled_once(compiled: None, tmp_path: Path) -> None:
    assert path_with(FIRSTLIGHT_CACHE=str(tmp_path)).startswith("compiled")
    (built,) = tmp_path.iterdir()
    assert path_with(FIRSTLIGHT_CACHE=str(tmp_path), CXX="false").startswith("compiled")
    assert list(tmp_path.iterdir()) == [built]
