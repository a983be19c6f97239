"""The learning-rate range test: one step at each rate, on a copy of the network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.machine.streams import seeded
from firstlight.training.loop import BatchSource, endless, train_step
from firstlight.training.lr_finder import LRFinding, rounded
from firstlight.training.objective import Objective
from firstlight.training.optimizers import OptimizerSpec
from firstlight.training.state import TrainState

STEPS_PER_DECADE = 20
SMOOTHING_STEPS = 2.0
LEAST_FALL = 0.02
"""A smaller fall of the loss, as a fraction of the first loss, counts as noise."""


@dataclass(frozen=True)
class RangeTest:
    """The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3).

    The learning rate rises step by step, evenly in its logarithm, until the loss has risen again by half of
    its fall. The loss is smoothed symmetrically, so that the curve does not lag behind the rate.

    LRMIN is the rate at which the first tenth of the fall was reached. LRMAX is the last rate before the loss
    had risen by half of its fall for the first time: there the curve is steepest, so noise moves the answer
    least, and a run that warms up for epochs bears more than a test that warms up for seconds. Two losses in
    a row, not smoothed, that have risen by three quarters of the fall end the test as well: a loss that jumps
    shows that training is unstable, even while its mean still falls. Higher rates are not looked at: with
    batch norm the loss can fall again at rates at which no run trains.

    A loss that is not finite, or above twice the first, counts as twice the first. Raises InputError where
    the loss never fell, or never rose again.

    lowest: learning rate of the first step.
    highest: learning rate of the last step.
    """

    lowest: float = 1e-4
    highest: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise InputError(
                f"rates must satisfy 0 < lowest < highest, not {self.lowest:g}, {self.highest:g}"
            )

    def expected_steps(self, total: int) -> int:
        return round(0.8 * STEPS_PER_DECADE * math.log10(self.highest / self.lowest))

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        objective: Objective = Objective(),
        **rest: Any,
    ) -> LRFinding:
        start = time.perf_counter()
        steps = 1 + round(math.log10(self.highest / self.lowest) * STEPS_PER_DECADE)
        state = TrainState.create(copy.deepcopy(model), optimizer, machine)
        state.model.train()
        rates: list[float] = []
        losses: list[float] = []
        smoothed: list[float] = []
        indices = None
        settled = round(5 * SMOOTHING_STEPS)  # so many steps later smoothing changes a loss no more
        with seeded(0, "range test"):  # for layers that draw from the global stream, such as dropout
            for step, (images, labels) in zip(range(steps), endless(batches), strict=False):
                rate = self.lowest * (self.highest / self.lowest) ** (step / (steps - 1))
                loss = float(train_step(state, images, labels, rate, objective, machine))
                # A loss that explodes would otherwise drown, once smoothed, those of the rates before it.
                ceiling = 2 * abs(losses[0]) if losses else loss
                rates.append(rate)
                losses.append(min(loss, ceiling) if math.isfinite(loss) else ceiling)
                smoothed = smooth(losses)
                indices = bracket(smoothed, losses)
                if not math.isfinite(loss) or (indices is not None and indices[1] + settled < step):
                    break
        if indices is None:
            fell = bool(smoothed) and smoothed[0] - min(smoothed) > LEAST_FALL * abs(smoothed[0])
            raise InputError(
                "the learning-rate range test saw the loss fall up to its highest rate"
                if fell
                else "the learning-rate range test saw no rate at which the loss falls",
                "Give the rates: --set peak_lr=… --set min_lr=…",
            )
        low, peak = indices
        fall = f"from {smoothed[0]:.2f} to {min(smoothed[: peak + 1]):.2f}"
        return LRFinding(
            rates=tuple(rates),
            losses=tuple(losses),
            smoothed=tuple(smoothed),
            peak_lr=rounded(rates[peak]),
            min_lr=rounded(rates[low]),
            peak_because=f"the highest rate before the loss rose again by half of its fall ({fall})",
            min_because="the rate at which the first tenth of that fall was reached",
            seconds=time.perf_counter() - start,
        )


def smooth(losses: Sequence[float], width: float = SMOOTHING_STEPS) -> list[float]:
    """Average each loss with its neighbours under a Gaussian whose standard deviation is `width` steps."""
    steps = torch.arange(len(losses), dtype=torch.float64)
    weights = torch.exp(-(((steps[:, None] - steps) / width) ** 2) / 2)
    weights /= weights.sum(1, keepdim=True)
    return (weights @ torch.tensor(losses, dtype=torch.float64)).tolist()


def noise(losses: Sequence[float], smoothed: Sequence[float]) -> float:
    """Estimate the standard deviation of single losses around the smoothed curve, from the median."""
    deviations = sorted(abs(loss - mean) for loss, mean in zip(losses, smoothed, strict=False))
    return 1.4826 * deviations[len(deviations) // 2] if deviations else 0.0


def bracket(smoothed: Sequence[float], losses: Sequence[float] = ()) -> tuple[int, int] | None:
    """Return the indices of the lowest and the highest useful rate, as `RangeTest` chooses them.

    None where the loss never rises again after a fall. Less than three times the noise of single losses is no
    fall.
    """
    least = max(LEAST_FALL * abs(smoothed[0]), 3 * noise(losses, smoothed)) if smoothed else 0.0
    lowest = math.inf
    for index, loss in enumerate(smoothed):
        lowest = min(lowest, loss)
        fall = smoothed[0] - lowest
        if fall <= least:
            continue
        pair = losses[index : index + 2]
        jumped = len(pair) == 2 and min(pair) > lowest + 0.75 * fall
        if jumped or loss > lowest + 0.5 * fall:
            low = next(i for i, each in enumerate(smoothed) if each <= smoothed[0] - 0.1 * fall)
            return low, index - 1
    return None
