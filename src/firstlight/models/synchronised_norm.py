"""Batch norm over the images of all ranks, on a CPU too, where torch's own needs CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the images of all ranks.

    Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1. Every rank must call it, in the same order.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        result, mean, variance, count = _Normalise.apply(images, self.eps)  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:
                    momentum = 1.0 / float(self.num_batches_tracked or 1)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        if self.affine:
            shape = (1, -1, 1, 1)
            result = torch.addcmul(self.bias.view(shape), result, self.weight.view(shape))
        return result.to(images.dtype)  # type: ignore[no-any-return]


class _Normalise(Function):
    """(x - mean) / std of each channel, with mean and std over all ranks; sums are fp64."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, channels = images.float(), images.shape[1]
        local = values.double()
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=images.device)
        sums[:channels] = local.sum((0, 2, 3))
        sums[channels:-1] = local.square().sum((0, 2, 3))
        sums[-1] = images.numel() // channels
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean.square()).clamp_(min=0)
        inverse_std = (variance + eps).rsqrt().float().view(1, -1, 1, 1)
        normalised = (values - mean.float().view(1, -1, 1, 1)) * inverse_std
        ctx.save_for_backward(normalised, inverse_std, count)
        ctx.dtype = images.dtype
        results = normalised, mean.float(), variance.float(), count.float()
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        # The loss is the sum of the ranks' shares, and the mean and variance depend on every rank's images.
        normalised, inverse_std, count = ctx.saved_tensors
        wide = gradient.double()
        sums = torch.stack([wide.sum((0, 2, 3)), (wide * normalised).sum((0, 2, 3))])
        dist.all_reduce(sums)
        mean, slope = (sums / count).float().view(2, 1, -1, 1, 1)
        return ((gradient - mean - normalised * slope) * inverse_std).to(ctx.dtype), None


@contextlib.contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, every plain `nn.BatchNorm2d` of a model is a `SynchronisedBatchNorm2d`."""
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    try:
        for norm in norms:
            norm.__class__ = SynchronisedBatchNorm2d
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
