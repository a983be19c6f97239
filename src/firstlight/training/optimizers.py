"""Optimizers as frozen values that build torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.processor import fast_bf16_products


class OptimizerSpec(Protocol):
    """The choice of an optimizer: a frozen dataclass that builds it from parameters and a learning rate.

    A parameter group may hold "lr_factor", a factor on the schedule's learning rate.
    fused: one kernel for all parameters, which on a GPU applies loss scaling without waiting for the host.
    """

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer: ...


def _check(weight_decay: float, factors: dict[str, float] | None = None, **momenta: float) -> None:
    """Raise InputError where a momentum is not in [0, 1), a factor not positive or weight decay negative."""
    for name, value in momenta.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must be in [0, 1), not {value:g}")
    for name, value in (factors or {}).items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a positive number, not {value:g}")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay must not be negative, but is {weight_decay:g}")


@dataclass(frozen=True)
class UsualRate:
    """The peak rate that works best with an optimizer, over networks and images; see docs/finder.md.

    rate: at batches of 128 and 1,000 steps.
    per_batch, per_steps: powers by which it grows with the batch, and with the number of steps.
    """

    rate: float
    per_batch: float
    per_steps: float

    def __call__(self, batch_size: int, steps: int) -> float:
        return float(self.rate * (batch_size / 128) ** self.per_batch * (steps / 1000) ** self.per_steps)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum.

    momentum: decay of the running sum of gradients, in a step.
    weight_decay: this times the weight is added to its gradient.
    nesterov: Nesterov's momentum; no effect without momentum.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    usual: ClassVar[UsualRate] = UsualRate(0.25, 0.45, -0.3)

    def __post_init__(self) -> None:
        _check(self.weight_decay, momentum=self.momentum)

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
            # torch leaves them uninitialised where loss scaling skips the first step, as fp16 often does.
            for weight in optimizer.param_groups[0]["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980).

    beta1: decay of the running mean of gradients, in a step.
    beta2: decay of the running mean of squared gradients, in a step.
    weight_decay: this times the weight is added to its gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    optimizer: ClassVar[type[torch.optim.Adam]] = torch.optim.Adam
    usual: ClassVar[UsualRate] = UsualRate(0.007, 0.45, -0.3)

    def __post_init__(self) -> None:
        _check(self.weight_decay, beta1=self.beta1, beta2=self.beta2)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return self.optimizer(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).

    beta1: decay of the running mean of gradients, in a step.
    beta2: decay of the running mean of squared gradients, in a step.
    weight_decay: a step at the learning rate r multiplies weights by 1 - r × this.
    """

    weight_decay: float = 0.01
    optimizer: ClassVar[type[torch.optim.Adam]] = torch.optim.AdamW


@dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum for convolution filters, and Nesterov momentum for all other weights.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The filters (4-dimensional
    weights) have the schedule's own learning rate, a fixed norm and no weight decay, since the batch norm
    behind them cancels their scale (airbench94_muon).

    momentum: decay of the running sum of a filter's gradients, in a step.
    bias_lr_factor: factor on the schedule's learning rate for biases, and for the weights of batch norm.
    linear_lr_factor: factor on the schedule's learning rate for linear layers.
    other_momentum: decay of the running sum of the other weights' gradients, in a step.
    weight_decay: a step at the schedule's learning rate r multiplies all weights but filters by 1 - r × this.
    """

    momentum: float = 0.6
    bias_lr_factor: float = 1.0
    linear_lr_factor: float = 1.0
    other_momentum: float = 0.85
    weight_decay: float = 0.0
    usual: ClassVar[UsualRate] = UsualRate(0.06, 0.45, -0.3)

    def __post_init__(self) -> None:
        factors = {"bias_lr_factor": self.bias_lr_factor, "linear_lr_factor": self.linear_lr_factor}
        _check(self.weight_decay, factors, momentum=self.momentum, other_momentum=self.other_momentum)

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        weights = [weight for weight in parameters if weight.requires_grad]
        others = {"momentum": self.other_momentum, "weight_decay": self.weight_decay, "orthogonal": False}
        filters, vectors, matrices = (
            [weight for weight in weights if weight.ndim in ndims] for ndims in ((4,), (0, 1), (2, 3))
        )
        groups: list[dict[str, Any]] = [
            {"params": filters, "momentum": self.momentum, "orthogonal": True},
            {"params": vectors, "lr_factor": self.bias_lr_factor, **others},
            {"params": matrices, "lr_factor": self.linear_lr_factor, **others},
        ]
        return _Muon([group for group in groups if group["params"]], lr)


class _Muon(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "lr_factor": 1.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        # By lists: on a GPU one kernel serves all tensors of a group, where each alone is too small for it.
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            steps = list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
            if group["orthogonal"]:
                norms = [weight.norm() for weight in weights]
                torch._foreach_mul_(
                    weights, [len(weight) ** 0.5 / norm for weight, norm in zip(weights, norms, strict=True)]
                )
                steps = _orthogonal_steps(steps)
            if group["weight_decay"]:
                # It follows the schedule's learning rate, without the group's factor.
                decay = 1 - group["lr"] / group["lr_factor"] * group["weight_decay"]
                torch._foreach_mul_(weights, decay)
            torch._foreach_mul_(steps, group["lr"])
            torch._foreach_sub_(weights, steps)


def _orthogonal_steps(steps: list[Tensor]) -> list[Tensor]:
    """Orthogonalise each; on a GPU those of one shape together, since one alone does not fill it."""
    if steps[0].device.type == "cpu":
        return [orthogonalised(step.flatten(1)).view_as(step) for step in steps]
    by_shape: dict[torch.Size, list[int]] = {}
    for index, step in enumerate(steps):
        by_shape.setdefault(step.shape, []).append(index)
    result = list(steps)
    for indices in by_shape.values():
        stacked = orthogonalised(torch.stack([steps[index].flatten(1) for index in indices]))
        for index, matrix in zip(indices, stacked, strict=True):
            result[index] = matrix.view_as(steps[index])
    return result


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return nearly U V' for a matrix U S V': all its singular values brought near 1, its directions kept.

    matrix: M×N, or a stack of such, B×M×N.

    By a Newton-Schulz iteration of fifth order whose coefficients make small singular values grow fastest
    (Jordan et al. 2024); three steps bring those of an ordinary gradient to between about 0.3 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    norm = wide.norm() if wide.ndim == 2 else wide.norm(dim=(-2, -1), keepdim=True)
    x = (wide / (norm + 1e-7)).to(_product_type(matrix.device))
    add_product = torch.addmm if wide.ndim == 2 else torch.baddbmm
    # A step multiplies by p(X X') = a + b X X' + c (X X')². These polynomials and X X' commute, so they are
    # multiplied with one another first, small and square, and only their product with the wide X.
    square, product = x @ x.mT, None
    for remaining in reversed(range(steps)):
        polynomial = add_product(square, square, square, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if remaining:
            square = polynomial @ square @ polynomial
    x = x if product is None else product @ x
    orthogonal: Tensor = x if wide is matrix else x.mT
    return orthogonal.to(matrix.dtype)


def _product_type(device: torch.device) -> torch.dtype:
    """Return bf16 where its products are fast, else fp32; the iteration corrects its own rounding.

    By the kind of chip and not by a measurement, since a resumed run must end with the same bits.
    """
    fast = device.type == "cuda" or (device.type == "cpu" and fast_bf16_products())
    return torch.bfloat16 if fast else torch.float32


def usual_lr(optimizer: OptimizerSpec, batch_size: int, steps: int) -> float:
    """Return the peak rate that has worked best with an optimizer, by its batch and the length of the run.

    0.01 for an optimizer that does not say; for the others see docs/finder.md.
    """
    usual = getattr(optimizer, "usual", None)
    return 0.01 if usual is None else usual(batch_size, steps)
