"""Batch norm and activation, if any, as one operation, forwards and backwards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from firstlight.machine.kernels.library import load

_LAYOUT = torch.channels_last


# Coefficients of an activation x·σ(linear·x + cubic·x³), σ the logistic function; zeros stand for ReLU, a
# negative one for no activation.
_RELU, _SILU, _NONE = (0.0, 0.0), (1.0, 0.0), (-1.0, 0.0)
_GELU = (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)


def _coefficients(activation: nn.Module | None) -> tuple[float, float] | None:
    match activation:
        case None:
            return _NONE
        case nn.ReLU():
            return _RELU
        case nn.SiLU():
            return _SILU
        case nn.GELU(approximate="tanh"):
            return _GELU
        case _:
            return None


def serves(
    norm: nn.BatchNorm2d, activation: nn.Module | None, images: Tensor, dtype: torch.dtype = torch.bfloat16
) -> bool:
    """Whether the compiled operation computes what `norm` and then `activation` do, in `dtype` on a CPU.

    It does so for multiples of 16 channels, for a norm that is as `nn.BatchNorm2d` makes it by default, and
    for ReLU, SiLU, GELU in its tanh form, and none.
    """
    return (
        _coefficients(activation) is not None
        and norm.num_features % 16 == 0
        and type(norm).forward is nn.BatchNorm2d.forward  # one over several ranks is another
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and images.device.type == "cpu"
        and bool(load(dtype))
    )


def norm_activate(
    images: Tensor,
    norm: nn.BatchNorm2d,
    activation: nn.Module | None,
    branch: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Return activation(norm(images) + branch) for N×C×H×W, in `dtype`; in training, update the statistics.

    branch: the other branch of a residual block, of the same shape; none adds nothing.

    Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1. Statistics are of the images in `dtype`, in fp32
    and fp64. Call it where `serves` is true.
    """
    images = images.to(dtype).contiguous(memory_format=_LAYOUT)
    if branch is not None:
        branch = branch.to(dtype).contiguous(memory_format=_LAYOUT)
    if not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None  # `serves` requires them
        mean, variance = norm.running_mean, norm.running_var
    else:
        mean, variance = _statistics(images.detach())
        _update_statistics(norm, mean, variance, images.numel() // images.shape[1])
    inverse_std = (variance + norm.eps).rsqrt()
    coefficients = _coefficients(activation)
    return _NormActivate.apply(  # type: ignore[no-any-return,no-untyped-call]
        images, branch, norm.weight, norm.bias, mean, inverse_std, norm.training, coefficients
    )


def activates(images: Tensor) -> bool:
    """Whether `activate` takes images like these: bf16, channels-last, on a CPU that has the kernels."""
    return (
        images.dtype == torch.bfloat16
        and images.device.type == "cpu"
        and images.ndim == 4
        and images.shape[1] % 16 == 0
        and images.is_contiguous(memory_format=_LAYOUT)
        and bool(load(torch.bfloat16))
    )


def activate(images: Tensor, activation: nn.Module) -> Tensor:
    """Return activation(images), N×C×H×W, where no gradient passes. Call it where `activates` is true."""
    coefficients = _coefficients(activation)
    assert coefficients is not None
    channels = images.shape[1]
    result, size = torch.empty_like(images), (images.numel() // channels, channels)
    unchanged = torch.ones(channels), torch.zeros(channels)
    load(images.dtype).call("norm_activate", images, None, *unchanged, result, *size, *coefficients)
    return result


def affine_activate_(
    images: Tensor, scale: Tensor, shift: Tensor, activation: nn.Module | None, branch: Tensor | None = None
) -> Tensor:
    """Replace fp32 images, N×C×H×W and channels-last, by activation(scale images + shift + branch).

    scale, shift: one number per channel; of batch norm, where its statistics are fixed. Call it where
    `serves` is true and nothing learns.
    """
    if branch is not None:
        branch = branch.contiguous(memory_format=_LAYOUT)
    coefficients = _coefficients(activation)
    assert coefficients is not None
    channels = images.shape[1]
    size = (images.numel() // channels, channels)
    load(torch.float32).call("norm_activate", images, branch, scale, shift, images, *size, *coefficients)
    return images


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (biased) variance of each channel, fp32."""
    channels = images.shape[1]
    pixels = images.numel() // channels
    sums = torch.empty(2, channels, dtype=torch.float64)
    load(images.dtype).call("norm_sums", images, pixels, channels, sums[0], sums[1])
    mean, square = sums / pixels
    return mean.float(), (square - mean.square()).clamp_(min=0).float()


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (pixels / (pixels - 1)), norm.momentum)


class _NormActivate(Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        training: bool,
        coefficients: tuple[float, float],
    ) -> Tensor:
        scale = weight * inverse_std
        shift = bias - mean * scale
        result = torch.empty_like(images)
        channels = images.shape[1]
        pixels = images.numel() // channels
        load(images.dtype).call(
            "norm_activate", images, branch, scale, shift, result, pixels, channels, *coefficients
        )
        ctx.training, ctx.coefficients = training, coefficients
        ctx.save_for_backward(images, branch, mean, inverse_std, scale, shift)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, branch, mean, inverse_std, scale, shift = ctx.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=_LAYOUT)
        channels = images.shape[1]
        pixels = images.numel() // channels
        sums = torch.empty(2, channels, dtype=torch.float64)
        size = (pixels, channels)
        load(images.dtype).call(
            "norm_activate_gradient_sums",
            *(gradient, images, branch, scale, shift, *size, sums[0], sums[1], *ctx.coefficients),
        )
        of_bias, of_weight = sums[0], inverse_std * (sums[1] - mean * sums[0])
        of_images = of_branch = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            # In training the mean and the variance depend on every pixel; in evaluation they are constants.
            slope = -scale * inverse_std * of_weight / pixels if ctx.training else torch.zeros_like(of_weight)
            offset = -scale * of_bias / pixels - slope * mean if ctx.training else slope
            of_images = torch.empty_like(images)
            of_branch = torch.empty_like(images) if ctx.needs_input_grad[1] else None
            coefficients = (scale, shift, slope.float(), offset.float())
            arguments = (gradient, images, branch, *coefficients, of_images, of_branch)
            load(images.dtype).call("norm_activate_gradient", *arguments, *size, *ctx.coefficients)
        return of_images, of_branch, of_weight.float(), of_bias.float(), None, None, None, None
