"""The compiled operations compute what the plain ones do, and step aside where they cannot."""

from __future__ import annotations

import contextlib
import copy
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
from firstlight.machine.streams import seeded, stream
from firstlight.models.blocks import ACTIVATIONS, ConvBlock
from firstlight.models.custom_resnet import CustomResNet
from firstlight.models.resnet import BasicBlock

LAYOUT = torch.channels_last
BF16 = torch.bfloat16


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


def drawn(purpose: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, purpose)).to(BF16).contiguous(memory_format=LAYOUT)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Euclidean norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(values: Tensor, places: Tensor) -> Tensor:
    """Put pooled values back at their places (0 to 3) in windows of zeros."""
    zero = torch.zeros_like(values)
    parts = [torch.where(places == place, values, zero) for place in range(4)]
    return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)


# Batches, channels and sides at which blocks of tiles, of channels and of pairs come out uneven.
SHAPES = [(3, 16, 32, 8, 6), (1, 32, 16, 2, 4), (5, 48, 80, 4, 4), (7, 64, 64, 6, 2), (2, 128, 64, 16, 16)]
ODD = [(3, 16, 32, 7, 6), (5, 48, 16, 3, 3), (2, 32, 80, 2, 5), (4, 64, 64, 1, 1)]


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width", "pool"),
    [(*shape, pool) for shape in SHAPES for pool in (False, True)] + [(*shape, False) for shape in ODD],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_convolution_and_its_gradients_equal_the_plain_ones(
    count: int, inputs: int, outputs: int, height: int, width: int, pool: bool, threads: int, compiled: None
) -> None:
    images = drawn("images", count, inputs, height, width).requires_grad_()
    weight = (
        torch.randn(outputs, inputs, 3, 3, generator=stream(0, "weight")) / (3 * inputs**0.5)
    ).requires_grad_()
    with on_threads(threads):
        found = convolution.convolve(images, weight, pool=pool)
        places = found.grad_fn.saved_tensors[2]  # type: ignore[union-attr]
        direction = drawn("direction", *found.shape)
        by_images, by_weight = torch.autograd.grad(found, (images, weight), direction)

    exact = images.detach().double().requires_grad_()
    filters = weight.detach().double().requires_grad_()
    whole = F.conv2d(exact, filters, padding=1)
    expected, spread_direction = whole, direction.double()
    if pool:
        # Of two nearly equal values either may be the largest, so the places are taken as they were chosen.
        windows = F.pixel_unshuffle(whole.detach(), 2).unflatten(1, (outputs, 4))
        chosen = windows.gather(2, places.long().unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(chosen, windows.amax(2), rtol=0.02, atol=0.02)
        expected, spread_direction = chosen, spread(direction.double(), places)
    plain = torch.autograd.grad(whole, (exact, filters), spread_direction)
    # bf16 keeps 8 bits: rounding to it alone errs by 0.0017 of the norm. The transforms round once more.
    assert found.dtype == by_images.dtype == BF16 and by_weight.dtype == torch.float32
    assert found.is_contiguous(memory_format=LAYOUT)
    assert error(found, expected) < 0.006
    assert error(by_images, plain[0]) < 0.006
    assert error(by_weight, plain[1]) < 0.006


@pytest.mark.parametrize("sizes", [(2.0**-40, 2.0**-20, 2.0**-30), (2.0**30, 2.0**20, 2.0**-60)])
@pytest.mark.parametrize("pool", [False, True])
def test_values_of_any_size_are_convolved(sizes: tuple[float, ...], pool: bool, compiled: None) -> None:
    # 544 channels: longer sums than one chain of products in fp16.
    values = [(2, 544, 6, 6), (16, 544, 3, 3), (2, 16, 3, 3) if pool else (2, 16, 6, 6)]
    names = ("images", "weight", "direction")

    def made(sizes: tuple[float, ...]) -> tuple[Tensor, ...]:
        images, weight, direction = (
            drawn(name, *shape) * size for name, shape, size in zip(names, values, sizes, strict=True)
        )
        images.requires_grad_()
        weight = weight.float().requires_grad_()
        found = convolution.convolve(images, weight, pool=pool)
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


def test_the_largest_sums_there_can_be_do_not_overflow(compiled: None) -> None:
    images = torch.full((1, 1024, 4, 4), 3.0).to(BF16).contiguous(memory_format=LAYOUT).requires_grad_()
    weight = torch.full((16, 1024, 3, 3), 0.5, requires_grad=True)
    found = convolution.convolve(images, weight)
    expected = F.conv2d(images.float(), weight, padding=1)
    assert error(found, expected) < 0.05  # equal values all round the same way
    direction = torch.ones_like(found)
    mine = torch.autograd.grad(found, (images, weight), direction)
    theirs = torch.autograd.grad(expected, (images, weight), direction.float())
    assert all(error(one, other) < 0.05 for one, other in zip(mine, theirs, strict=True))


def test_any_number_of_threads_gives_the_same_bits(compiled: None) -> None:
    images = drawn("images", 5, 48, 12, 12).requires_grad_()
    weight = drawn("weight", 80, 48, 3, 3).float().requires_grad_()
    found = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            result = convolution.convolve(images, weight, pool=True)
            found.append([result, *torch.autograd.grad(result.sum(), (images, weight))])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_a_pooled_gradient_goes_to_the_places_that_were_largest(compiled: None) -> None:
    images = (drawn("images", 2, 16, 4, 4) * 3).round()  # sums of four are exact in bf16
    weight = torch.zeros(16, 16, 3, 3)
    weight[range(16), range(16), 1, 1] = 1.0  # the identity
    images.requires_grad_()
    found = convolution.convolve(images, weight, pool=True)
    largest, places = F.max_pool2d(images.detach().float(), 2, return_indices=True)
    assert torch.equal(found.float(), largest)
    found.sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad.float(), F.max_unpool2d(torch.ones_like(largest), places, 2))


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("pool", [False, True])
def test_what_is_not_a_number_is_passed_on(place: tuple[int, int], pool: bool, compiled: None) -> None:
    images = drawn("images", 1, 16, 4, 4)
    images[0, 3, place[0], place[1]] = torch.nan
    found = convolution.convolve(images, torch.ones(16, 16, 3, 3), pool=pool)
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
    norm = nn.BatchNorm2d(shape[1])
    with torch.no_grad():
        for purpose, tensor in (("weight", norm.weight), ("bias", norm.bias), ("mean", norm.running_mean)):
            tensor.copy_(torch.randn(shape[1], generator=stream(0, purpose)))
    plain = copy.deepcopy(norm).double().train(training)
    norm.train(training)
    images = (drawn("images", *shape) * 2 + 3).requires_grad_()
    exact = images.detach().double().requires_grad_()
    direction = drawn("direction", *shape)

    branch = drawn("branch", *shape).requires_grad_() if branched else None
    exact_branch = None if branch is None else branch.detach().double().requires_grad_()

    found = normalisation.norm_activate(images, norm, activate, branch)
    total = plain(exact) if exact_branch is None else plain(exact) + exact_branch
    expected = total if activate is None else activate(total)
    assert error(found, expected) < 0.003
    assert norm.num_batches_tracked == plain.num_batches_tracked
    torch.testing.assert_close(norm.running_mean.double(), plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), plain.running_var, rtol=1e-5, atol=1e-6)

    branches = ([branch], [exact_branch]) if branched else ([], [])
    mine = torch.autograd.grad(found, [images, norm.weight, norm.bias, *branches[0]], direction)
    theirs = torch.autograd.grad(
        expected, [exact, plain.weight, plain.bias, *branches[1]], direction.double()
    )
    of_sums = 1e-4 if activation in ("relu", None) else 4e-4  # the others divide to 14 bits
    tolerances = (0.003, of_sums, of_sums, 0.003)[: len(mine)]
    for one, other, tolerance in zip(mine, theirs, tolerances, strict=True):
        assert error(one, other) < tolerance


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the compiled operations that are called from now on."""
    seen: list[str] = []
    call = library.Kernels.call

    def note(self: library.Kernels, name: str, *arguments: Tensor | float | None) -> None:
        seen.append(name)
        call(self, name, *arguments)

    monkeypatch.setattr(library.Kernels, "call", note)
    return seen


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


def test_the_precision_is_chosen_by_the_operation_that_will_be_taken(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(monkeypatch)
    machine._convolution(BF16)()
    assert "convolve_filter_gradient" in seen
    assert machine._faster_precision(torch.device("cpu")) == "bf16"


def test_a_residual_block_takes_them_and_adds_its_branch_in_one(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, images = BasicBlock(16, 16, 1), drawn("images", 2, 16, 8, 8)
    with torch.no_grad():
        plain = copy.deepcopy(block)(images.float())
    seen = calls(monkeypatch)
    with torch.autocast("cpu", BF16):
        found = block(images)
    assert seen.count("convolve") == seen.count("norm_activate") == 2
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
    assert seen.count("convolve_filter_gradient") == 12 * 7 and seen.count("norm_activate_gradient") == 12 * 8
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
    assert path.startswith("plain operations: ") and said in path
    assert not list(tmp_path.iterdir())


def test_they_are_compiled_once(compiled: None, tmp_path: Path) -> None:
    assert path_with(FIRSTLIGHT_CACHE=str(tmp_path)).startswith("compiled")
    (built,) = tmp_path.iterdir()
    assert path_with(FIRSTLIGHT_CACHE=str(tmp_path), CXX="false").startswith("compiled")
    assert list(tmp_path.iterdir()) == [built]
