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

    label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, arXiv
        1512.00567, section 7); 0 is none.
    l1: factor on the sum of |weights|; 0 is none.
    clip_norm: largest norm of the gradient; 0 does not clip.
    sharpness: distance at which the gradient is taken, along the gradient of a quarter of the batch (see
        `uphill`); 0 takes it where the weights are. A step then costs a quarter more.
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
    """Inside the `with`, move all weights of two or more dimensions `distance` along the gradient of `loss`.

    They are put back at the end. `distance` is the norm over all of them together; a constant factor on the
    loss changes nothing, and where the gradient is not finite nothing moves. The running statistics of batch
    norm stay as they are. Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412, section 2).
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
