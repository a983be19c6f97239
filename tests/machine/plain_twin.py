"""What the tests of the kernels share: tensors drawn at random, and the plain operations in fp64."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.machine.kernels import convolution, library, normalisation
from firstlight.machine.streams import stream

LAYOUT = torch.channels_last
BF16, FP32 = torch.bfloat16, torch.float32

# bf16 keeps 8 bits: rounding to it alone errs by 0.0017 of the norm, and the transforms round once more.
# fp32 keeps 24, of which the transforms lose about four, and long sums some more.
CONVOLUTION = {BF16: 0.006, FP32: 1e-5}
# bf16 images whose sides 4 or 3 divides, in larger tiles, whose transforms lose two to three bits.
LARGE_TILES = 0.022
NORM = {BF16: 0.003, FP32: 1e-6}
# Of a norm's gradients: of images and branch, of weight and bias. Activations that divide do so to 14 bits
# in bf16.
NORM_GRADIENTS = {BF16: (0.003, 1e-4), FP32: (1e-5, 1e-5)}
DIVIDED = 4e-4


def drawn(dtype: torch.dtype, purpose: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, purpose)).to(dtype).contiguous(memory_format=LAYOUT)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Euclidean norm; where all is zero, the absolute one."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / (expected.norm() or 1.0))


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


def convolution_errors(
    images_shape: tuple[int, int, int, int],
    outputs: int,
    *,
    dtype: torch.dtype,
    stride: int = 1,
    pool: bool = False,
    large_tiles: bool = False,
    threads: int = 1,
) -> tuple[float, float, float]:
    """Return the relative errors of a compiled convolution: of its result, of both gradients."""
    inputs = images_shape[1]
    images = drawn(dtype, "images", *images_shape).requires_grad_()
    weight = torch.randn(outputs, inputs, 3, 3, generator=stream(0, "weight")) / (3 * inputs**0.5)
    weight.requires_grad_()
    with on_threads(threads):
        found = convolution.convolve(images, weight, stride, pool=pool, dtype=dtype, large_tiles=large_tiles)
        direction = drawn(dtype, "direction", *found.shape)
        places = found.grad_fn.saved_tensors[-1]  # type: ignore[union-attr]
        by_images, by_weight = torch.autograd.grad(found, (images, weight), direction)
    assert found.dtype == by_images.dtype == dtype and by_weight.dtype == FP32
    assert found.is_contiguous(memory_format=LAYOUT)

    exact, filters = (value.detach().double().requires_grad_() for value in (images, weight))
    whole = F.conv2d(exact, filters, stride=stride, padding=1)
    expected, whole_direction = whole, direction.double()
    if pool:
        # Of two nearly equal values either may be the largest, so the places are taken as they were chosen.
        windows = F.pixel_unshuffle(whole.detach(), 2).unflatten(1, (outputs, 4))
        expected = windows.gather(2, places.long().unsqueeze(2)).squeeze(2)
        is_large = large_tiles and takes_large(images_shape, dtype, pool=True)
        tolerance = (0.2 if is_large else 0.02) if dtype == BF16 else 1e-4
        torch.testing.assert_close(expected, windows.amax(2), rtol=tolerance, atol=tolerance)
        whole_direction = spread(direction.double(), places)
    of_images, of_weight = torch.autograd.grad(whole, (exact, filters), whole_direction)
    return error(found, expected), error(by_images, of_images), error(by_weight, of_weight)


def takes_large(images_shape: tuple[int, int, int, int], dtype: torch.dtype, *, pool: bool = False) -> bool:
    """Whether larger tiles fit: 4 divides both sides or, where no window is pooled in them, 3."""
    sides = images_shape[2:]
    tiles = (4,) if pool else (4, 3)
    has_large = bool(library.load(dtype).variant.large_tiles)
    return has_large and any(all(side % tile == 0 for side in sides) for tile in tiles)


def check_convolution(
    images_shape: tuple[int, int, int, int],
    outputs: int,
    *,
    dtype: torch.dtype,
    stride: int = 1,
    pool: bool = False,
    large_tiles: bool = False,
    threads: int = 1,
) -> None:
    """Hold a compiled convolution and its gradients equal to the plain ones."""
    result, *gradients = convolution_errors(
        images_shape,
        outputs,
        dtype=dtype,
        stride=stride,
        pool=pool,
        large_tiles=large_tiles,
        threads=threads,
    )
    is_large = large_tiles and stride == 1 and takes_large(images_shape, dtype, pool=pool)
    has_large_gradients = stride == 1 and takes_large(images_shape, dtype)
    assert result < (LARGE_TILES if is_large else CONVOLUTION[dtype])
    assert max(gradients) < (LARGE_TILES if has_large_gradients else CONVOLUTION[dtype])


def check_norm(
    shape: tuple[int, int, int, int],
    activate: nn.Module | None,
    *,
    dtype: torch.dtype,
    training: bool = True,
    branched: bool = False,
) -> None:
    """Hold a compiled norm, its statistics and its gradients equal to the plain ones."""
    norm = nn.BatchNorm2d(shape[1])
    with torch.no_grad():
        for purpose, tensor in (("weight", norm.weight), ("bias", norm.bias), ("mean", norm.running_mean)):
            tensor.copy_(torch.randn(shape[1], generator=stream(0, purpose)))
    plain = copy.deepcopy(norm).double().train(training)
    norm.train(training)
    images = drawn(dtype, "images", *shape) * 2 + 3
    branch = drawn(dtype, "branch", *shape) if branched else None
    inputs = [value.requires_grad_() for value in (images, branch) if value is not None]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    found = normalisation.norm_activate(images, norm, activate, branch, dtype)
    total = plain(exact[0]) + sum(exact[1:])
    expected = total if activate is None else activate(total)
    assert error(found, expected) < NORM[dtype]
    assert norm.num_batches_tracked == plain.num_batches_tracked
    torch.testing.assert_close(norm.running_mean.double(), plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), plain.running_var, rtol=1e-5, atol=1e-6)

    direction = drawn(dtype, "direction", *shape)
    mine = torch.autograd.grad(found, [*inputs, norm.weight, norm.bias], direction)
    theirs = torch.autograd.grad(expected, [*exact, plain.weight, plain.bias], direction.double())
    of_images, of_sums = NORM_GRADIENTS[dtype]
    if dtype == BF16 and not isinstance(activate, nn.ReLU | None):
        of_sums = DIVIDED
    for one, other, tolerance in zip(mine, theirs, [of_images] * len(inputs) + [of_sums] * 2, strict=True):
        assert error(one, other) < tolerance
