"""Optimizers as values: what they build is torch's own, and loss scaling may skip any step of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from firstlight.machine.streams import stream
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon, OptimizerSpec, orthogonalised


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
    after_fused = after_steps(spec([fused], 0.01, fused=True), fused, overflows)
    after_plain = after_steps(spec([plain], 0.01), plain, overflows)
    torch.testing.assert_close(after_fused, after_plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "kind", "settings"),
    [
        (SGD(0.8, 0.01, False), torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01, "nesterov": False}),
        (SGD(0.0), torch.optim.SGD, {"momentum": 0.0, "nesterov": False}),
        (Adam(0.8, 0.9, 0.01), torch.optim.Adam, {"betas": (0.8, 0.9), "weight_decay": 0.01}),
        (AdamW(0.8, 0.9, 0.02), torch.optim.AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.02}),
    ],
    ids=repr,
)
def test_every_choice_reaches_torch(spec: OptimizerSpec, kind: type, settings: dict[str, object]) -> None:
    optimizer = spec([weight()], 0.25)
    assert type(optimizer) is kind
    [group] = optimizer.param_groups
    assert {key: group[key] for key in ("lr", *settings)} == {"lr": 0.25, **settings}


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32)])
def test_an_orthogonalised_matrix_keeps_its_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=stream(0, "matrix"))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(1000 * matrix)
    core = left.T @ result @ right.T
    values = core.diagonal()
    assert result.dtype == torch.float32 and result.shape == shape
    assert float(values.min()) > 0.2 and float(values.max()) < 1.3
    assert float((core - values.diag()).abs().max()) < 0.02
    assert float((result - left @ core @ right).norm() / result.norm()) < 0.02


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_a_stack_of_matrices_is_orthogonalised_one_by_one(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=stream(0, "stack"))
    one_by_one = torch.stack([orthogonalised(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalised(stack), one_by_one, atol=2e-2, rtol=0)


def test_muon_steps_filters_by_direction_and_the_rest_by_nesterov_momentum() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 4))
    network[1].weight.requires_grad_(False)
    weights = [parameter.detach().double() for parameter in network.parameters()]
    optimizer = Muon(0.6, bias_lr_factor=50.0, linear_lr_factor=3.0, other_momentum=0.85, weight_decay=0.1)(
        network.parameters(), 0.0
    )
    buffers = [torch.zeros_like(weight) for weight in weights]
    factors, noise = [1.0, 0.0, 50.0, 3.0, 50.0], stream(0, "gradient")
    for number in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=noise)
        slopes = [parameter.grad.double() for parameter in network.parameters()]
        lr = 0.1 / (number + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        optimizer.step()
        for index, (weight, factor) in enumerate(zip(weights, factors, strict=True)):
            if not factor:
                continue
            momentum = 0.6 if index == 0 else 0.85
            buffers[index].mul_(momentum).add_(slopes[index])
            step = slopes[index] + momentum * buffers[index]
            if index == 0:
                step = orthogonalised(step.flatten(1)).view_as(step)
                weight *= 8**0.5 / weight.norm()
            else:
                weight *= 1 - lr * 0.1
            weight -= lr * factor * step
    for parameter, expected in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-3, atol=1e-3)


def test_muon_does_without_filters() -> None:
    parameter = weight()
    before = parameter.detach().clone()
    optimizer = Muon()([parameter], 0.5)
    parameter.grad = torch.ones(64)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.5 * 1.85)
