"""What a training step minimises, and at which weights its gradient is computed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from firstlight.errors import InputError


@dataclass(frozen=True)
class Objective:
    """What a step minimises: cross-entropy with label smoothing, plus an L1 penalty.

    label_smoothing: share of a label that is spread over all classes. Szegedy et al. 2016 (arXiv 1512.00567),
        section 7.
    l1: factor on the sum of |weights|, which is added to the loss.
    clip_norm: largest norm of the gradient; 0 does not clip.
    sharpness: distance at which sharpness-aware minimization (SAM) takes the gradient; 0 is without. See
        `uphill`; the direction comes from the first quarter of the batch, so a step costs a quarter more.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    clip_norm: float = 0.0
    sharpness: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        for key in ("l1", "clip_norm", "sharpness"):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"{key} must not be negative, but is {getattr(self, key)}")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of N×K logits, in fp32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


@contextlib.contextmanager
def uphill(
    model: nn.Module,
    loss: Callable[[], Tensor],
    distance: float,
    add: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
) -> Iterator[None]:
    """Inside the `with`, move all weights of two or more dimensions `distance` along the gradient.

    They are put back at the end. Foret et al. 2021 (SAM, arXiv 2010.01412), section 2, less its weight decay.

    loss: returns the loss whose gradient gives the direction; its scale has no effect. Where the gradient is
        zero or not finite no weight moves. Running statistics of batch norm are left as they are.
    add: adds gradients up over ranks, in place.
    distance: Euclidean norm of the move of all these weights together.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    with _frozen_statistics(model):
        gradients = torch.autograd.grad(loss(), weights)
    add(gradients)
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        usable = torch.isfinite(norm) & (norm > 0)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(torch.where(usable, gradient * (distance / norm), 0.0))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
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
