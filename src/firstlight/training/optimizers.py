"""Optimizers as frozen values that build torch's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class OptimizerSpec(Protocol):
    """What every optimizer's value offers: called with parameters and a rate it builds the optimizer.

    fused: one kernel for all parameters, which on a GPU applies loss scaling without waiting for the host.
    """

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with Nesterov momentum; weight decay is added to the gradient."""

    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=fused,
        )
        if fused and self.momentum:
            # torch leaves them unwritten where loss scaling skips the very first step, as fp16 often does.
            for weight in optimizer.param_groups[0]["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980); weight decay is added to the gradient."""

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, fused=fused)
