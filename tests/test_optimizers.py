"""Optimizers as values: what they build is torch's own, and loss scaling may skip any step of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firstlight.runtime import stream
from firstlight.training.optimizers import SGD, Adam, AdamW, OptimizerSpec


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(64, generator=stream(0, "weight")))


def after_steps(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, overflows: tuple[int, ...]
) -> Tensor:
    """Return the weights after five scaled steps on their squares, some with an infinite gradient."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(5):
        optimizer.zero_grad()
        loss = parameter.square().sum() * (float("inf") if step in overflows else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return parameter.detach()


@pytest.mark.parametrize("overflows", [(), (2,), (0,), (0, 1, 3)])
@pytest.mark.parametrize(
    "spec", [SGD(), SGD(nesterov=False), SGD(momentum=0.0, nesterov=False), Adam(), AdamW()]
)
def test_a_fused_step_that_overflows_is_no_step(spec: OptimizerSpec, overflows: tuple[int, ...]) -> None:
    # Memory that torch hands out again unwritten is then not zero by luck.
    torch.full((64,), 1e30)
    fused, plain = weight(), weight()
    found = after_steps(spec([fused], 0.01, fused=True), fused, overflows)
    expected = after_steps(spec([plain], 0.01), plain, overflows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "kind", "settings"),
    [
        (SGD(0.8, 0.01, False), torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01, "nesterov": False}),
        (Adam(0.8, 0.9, 0.01), torch.optim.Adam, {"betas": (0.8, 0.9), "weight_decay": 0.01}),
        (AdamW(0.8, 0.9, 0.02), torch.optim.AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.02}),
    ],
)
def test_every_choice_reaches_torch(spec: OptimizerSpec, kind: type, settings: dict[str, object]) -> None:
    optimizer = spec([weight()], 0.25)
    assert type(optimizer) is kind
    [group] = optimizer.param_groups
    assert {key: group[key] for key in settings} == settings
    assert group["lr"] == 0.25
