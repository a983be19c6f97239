"""Optimizers as frozen values that build torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.processor import fast_bf16_products


class OptimizerSpec(Protocol):
    """What every optimizer's value offers: called with parameters and a rate it builds the optimizer.

    fused: one kernel for all parameters, which on a GPU applies loss scaling without waiting for the host.
    """

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer: ...


def _check(momenta: Mapping[str, float], rates: Mapping[str, float], weight_decay: float) -> None:
    """Raise InputError where a momentum is not in [0, 1), a rate not positive or weight decay negative."""
    for name, value in momenta.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must be in [0, 1), not {value:g}")
    for name, value in rates.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a positive number, not {value:g}")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay must not be negative, but is {weight_decay:g}")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum.

    momentum: decay of the mean gradient, in a step; 0 is none.
    weight_decay: factor on the weights that is added to their gradient.
    nesterov: whether momentum looks ahead (Sutskever et al. 2013); means nothing without momentum.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True

    def __post_init__(self) -> None:
        _check({"momentum": self.momentum}, {}, self.weight_decay)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
            fused=fused,
        )
        if fused and self.momentum:
            # torch leaves them unwritten where loss scaling skips the very first step, as fp16 often does.
            for weight in optimizer.param_groups[0]["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980).

    beta1: decay of the mean gradient, in a step.
    beta2: decay of the mean squared gradient, in a step.
    weight_decay: factor on the weights that is added to their gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check({"beta1": self.beta1, "beta2": self.beta2}, {}, self.weight_decay)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).

    beta1: decay of the mean gradient, in a step.
    beta2: decay of the mean squared gradient, in a step.
    weight_decay: a step at learning rate r multiplies the weights by 1 - r × weight_decay.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check({"beta1": self.beta1, "beta2": self.beta2}, {}, self.weight_decay)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True)
class Muon:
    """Momentum whose step is orthogonalised for filters, and plain Nesterov momentum for all other weights.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The schedule's rate is
    that of filters (4-dimensional weights), which are kept at a fixed norm as well, so they know no weight
    decay: behind each stands a batch norm, to which their size means nothing (airbench94_muon).

    momentum: of filters: decay of the mean gradient, in a step.
    bias_lr_factor: factor on the learning rate of vectors: weights and biases of batch norm, other biases.
    linear_lr_factor: factor on the learning rate of matrices: linear layers.
    other_momentum: of vectors and matrices.
    weight_decay: of vectors and matrices: a step at the schedule's rate r multiplies them by 1 - r × weight_decay.
    """

    momentum: float = 0.6
    bias_lr_factor: float = 1.0
    linear_lr_factor: float = 1.0
    other_momentum: float = 0.85
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        momenta = {"momentum": self.momentum, "other_momentum": self.other_momentum}
        rates = {"bias_lr_factor": self.bias_lr_factor, "linear_lr_factor": self.linear_lr_factor}
        _check(momenta, rates, self.weight_decay)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        weights = [weight for weight in parameters if weight.requires_grad]
        others = {"momentum": self.other_momentum, "weight_decay": self.weight_decay, "orthogonal": False}
        groups: list[dict[str, Any]] = [
            {"params": [w for w in weights if w.ndim == 4], "momentum": self.momentum, "orthogonal": True},
            {"params": [w for w in weights if w.ndim < 2], "lr_factor": self.bias_lr_factor, **others},
            {
                "params": [w for w in weights if w.ndim in (2, 3)],
                "lr_factor": self.linear_lr_factor,
                **others,
            },
        ]
        return _Muon([group for group in groups if group["params"]], lr)


class _Muon(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "lr_factor": 1.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.mul_(group["momentum"]).add_(weight.grad)
                step = weight.grad.add(buffer, alpha=group["momentum"])
                if group["orthogonal"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    step = orthogonalised(step.flatten(1)).view_as(weight)
                weight.mul_(1 - group["lr"] / group["lr_factor"] * group["weight_decay"])
                weight.sub_(step * group["lr"])


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return nearly U V' for a matrix U S V': all its singular values brought near 1, its directions kept.

    By a Newton-Schulz iteration of fifth order whose coefficients make small singular values grow fastest
    (Jordan et al. 2024); three steps leave those of an ordinary gradient between about 0.3 and 1.2.
    A step multiplies by p(X X') = a + b X X' + c (X X')², and these factors and X X' commute: so they are
    multiplied with one another, small and square, and only their product with the wide X.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = (wide / (wide.norm() + 1e-7)).to(_product_type(matrix.device))
    square, product = x @ x.T, None
    for left in reversed(range(steps)):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if left:
            square = factor @ square @ factor
    x = x if product is None else product @ x
    orthogonal: Tensor = x if wide is matrix else x.T
    return orthogonal.to(matrix.dtype)


def _product_type(device: torch.device) -> torch.dtype:
    """Return bf16 where its products are fast, else fp32; the iteration corrects its own rounding.

    By what the chip is and not by a measurement, since a resumed run must end with the same bits.
    """
    fast = device.type == "cuda" or (device.type == "cpu" and fast_bf16_products())
    return torch.bfloat16 if fast else torch.float32
