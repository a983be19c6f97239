"""The one-cycle policy: torch's own, with its ends exact."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from firstlight.errors import InputError
from firstlight.training.schedule import Cycle, OneCycle


def of_torch(schedule: Cycle) -> list[float]:
    """Return every rate of torch's OneCycleLR, set as the docstring of `Cycle` says."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=schedule.peak_lr,
        total_steps=schedule.total_steps,
        pct_start=(schedule.peak_step + 1) / schedule.total_steps,
        anneal_strategy={"linear": "linear", "cosine": "cos"}[schedule.curve],  # type: ignore[arg-type]
        cycle_momentum=False,
        div_factor=schedule.peak_lr / schedule.min_lr,
        final_div_factor=1.0,
    )
    rates = []
    for _ in range(schedule.total_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("total_steps", "peak_step", "peak_lr", "min_lr"),
    [
        (2328, 484, 0.4, 0.004),
        (10, 1, 1.0, 0.5),
        (97, 50, 0.03, 1e-6),
        (30, 28, 2.0, 0.02),
        (3, 1, 0.1, 0.01),
    ],
)
def test_it_equals_torch(total_steps: int, peak_step: int, peak_lr: float, min_lr: float, shape: str) -> None:
    schedule = Cycle(peak_lr, min_lr, total_steps, peak_step, shape)
    assert [schedule(step) for step in range(total_steps)] == pytest.approx(of_torch(schedule), rel=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(("peak_lr", "min_lr"), [(0.4, 0.0018), (0.1, 0.0), (0.9, 0.2)])
def test_the_assignments_ends_and_peak_are_exact(peak_lr: float, min_lr: float, shape: str) -> None:
    peak = 5 * 97 - 1
    rates = [Cycle(peak_lr, min_lr, 24 * 97, peak, shape)(step) for step in range(24 * 97)]
    assert (rates[0], rates[peak], rates[-1]) == (min_lr, peak_lr, min_lr)
    assert all(one < then for one, then in itertools.pairwise(rates[: peak + 1]))
    assert all(one > then for one, then in itertools.pairwise(rates[peak:]))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Cycle(1.0, 0.2, 9, 4), [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2]),
        (Cycle(0.7, 0.7, 5, 2), [0.7] * 5),
        (Cycle(1.0, 0.1, 4, 0), [1.0, 0.7, 0.4, 0.1]),
        (Cycle(1.0, 0.1, 4, 3), [0.1, 0.4, 0.7, 1.0]),
        (Cycle(0.5, 0.1, 1, 0), [0.5]),
    ],
)
def test_steps_are_even_and_the_peak_may_be_first_last_or_all(schedule: Cycle, rates: list[float]) -> None:
    found = [schedule(step) for step in range(schedule.total_steps)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert (found[0], found[-1]) == (rates[0], rates[-1])


@pytest.mark.parametrize(
    ("peak_epoch", "peak_step"), [(1, 9), (5, 49), (2.5, 24), (0.1, 0), (0.01, 0), (6, 59)]
)
def test_a_peak_may_lie_at_a_fraction_of_an_epoch(peak_epoch: float, peak_step: int) -> None:
    schedule = OneCycle(peak_epoch, 1.0, 0.1).steps(epochs=6, steps_per_epoch=10)
    assert (schedule.peak_step, schedule.total_steps) == (peak_step, 60)


@pytest.mark.parametrize(
    "rates", [(0.1, 0.2), (0.1, -0.1), (math.inf, 0.1), (math.nan, 0.1), (0.1, math.nan)]
)
def test_impossible_rates_are_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="min_lr ≤ peak_lr"):
        Cycle(*rates, 10, 5)


@pytest.mark.parametrize(
    ("steps", "says"),
    [((10, 10), "peak"), ((10, -1), "peak"), ((0, 0), "peak"), ((10, 5, "triangle"), "unknown schedule")],
)
def test_impossible_steps_and_curves_are_refused(steps: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Cycle(0.1, 0.01, *steps)


def test_a_finding_fills_the_open_rates_and_a_found_lrmin_yields_to_a_lower_peak() -> None:
    assert OneCycle().with_rates(0.4, 0.002) == OneCycle(5.0, 0.4, 0.002)
    assert OneCycle(peak_lr=0.001).with_rates(0.4, 0.002) == OneCycle(5.0, 0.001, 0.001)
    assert OneCycle(peak_lr=0.1, min_lr=0.05).with_rates(0.4, 0.002) == OneCycle(5.0, 0.1, 0.05)
    with pytest.raises(InputError, match="leaves a rate open"):
        OneCycle(peak_lr=0.1).steps(2, 10)


def test_it_stretches_with_the_epochs_and_must_peak_within_them() -> None:
    assert OneCycle(5).stretched(0.5).peak_epoch == 2.5
    with pytest.raises(InputError, match="outside the 4 epochs"):
        OneCycle(5).check(4)
    with pytest.raises(InputError, match="peak"):
        OneCycle(7, 1.0, 0.1).steps(epochs=6, steps_per_epoch=10)
