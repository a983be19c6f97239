"""Sharpness-aware minimization: gradients taken a little uphill, so that training ends where loss is flat."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def uphill(model: nn.Module, loss: Callable[[], Tensor], distance: float) -> Iterator[None]:
    """Have filters and matrices, within, `distance` uphill: in the norm of all together, along the gradient.

    loss: computes what rises uphill, from some images and the model. A factor on it means nothing, as only
    the direction counts; where its gradient is not finite nothing moves. Batch norm does not remember these
    images. Foret et al. 2021 (arXiv 2010.01412), section 2, without its weight decay.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    with _remembering_nothing(model):
        gradients = torch.autograd.grad(loss(), weights)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        steepness = torch.stack([gradient.norm() for gradient in gradients]).norm()
        finite = torch.isfinite(steepness) & (steepness > 0)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(torch.where(finite, gradient * (distance / steepness), 0.0))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


@contextlib.contextmanager
def _remembering_nothing(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norm as they are."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
