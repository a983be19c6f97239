"""What a training step minimises, and where its gradient is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Objective:
    """What a step minimises: cross-entropy with label smoothing, plus l1 × the sum of |weights|.

    clip_norm: the gradient's norm is cut to it; 0 leaves it. Label smoothing as in Szegedy et al.
    2016 (arXiv 1512.00567), section 7.
    sharpness: how far uphill the gradient of a step is taken (`training.sharpness`); 0 takes it where the
    weights are. The first quarter of the batch tells the way uphill, so a step costs a quarter more.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    clip_norm: float = 0.0
    sharpness: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of N×K logits, in fp32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


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
