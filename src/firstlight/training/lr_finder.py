"""The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3), on a copy of the network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.machine.streams import seeded
from firstlight.training.loop import BatchSource, train_step
from firstlight.training.objective import Objective
from firstlight.training.optimizers import OptimizerSpec
from firstlight.training.state import TrainState


@dataclass(frozen=True)
class LRFinding:
    """What a range test saw and concluded.

    rates, losses, smoothed: one entry per step, up to where the test stopped. A loss above twice the first,
        or not finite, is kept as twice the first.
    peak_because, min_because: one sentence each on how the rate was chosen.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    peak_lr: float
    min_lr: float
    peak_because: str
    min_because: str
    seconds: float
    method: str = "range test"

    def __str__(self) -> str:
        return f"LRMAX {self.peak_lr:g}: {self.peak_because}\nLRMIN {self.min_lr:g}: {self.min_because}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LRFinding:
        """Read what `to_json` gave."""
        try:
            curves = {key: tuple(values[key]) for key in ("rates", "losses", "smoothed")}
            return cls(**{**values, **curves})
        except (KeyError, TypeError) as error:
            raise InputError(f"not a learning-rate finding: {error}") from None


STEPS_PER_DECADE = 20
SMOOTHING_STEPS = 2.0
LEAST_FALL = 0.02
"""A fall of the loss smaller than this, as a fraction of where it began, is taken for noise."""


class Finder(Protocol):
    """What finds the rates that a schedule leaves open: a frozen dataclass. It works on copies."""

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        objective: Objective = Objective(),
    ) -> LRFinding:
        """Return LRMAX and LRMIN; raises InputError where it cannot tell them.

        Weights, statistics and random state of the caller are left alone.
        """
        ...


@dataclass(frozen=True)
class RangeTest:
    """The range test: a rate that rises from step to step, evenly in its logarithm.

    The losses are smoothed symmetrically, so that the curve does not lag behind its rates. LRMIN is the rate
    at which a tenth of the loss's fall is reached. LRMAX is the last rate before half of the fall is lost
    again: there the curve is steepest, so noise moves the answer least. Two single losses in a row that lose
    three quarters of the fall end it as well: training that leaps is unstable, even where the mean goes on
    falling. Higher rates are not looked at: with batch norm the loss can fall again where no run is stable.

    lowest: the first rate.
    highest: the last rate, unless the test ends before.
    """

    lowest: float = 1e-4
    highest: float = 10.0

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        objective: Objective = Objective(),
    ) -> LRFinding:
        """Run the test on a copy; raises InputError where the loss never falls, or never rises again."""
        start = time.perf_counter()
        steps = 1 + round(math.log10(self.highest / self.lowest) * STEPS_PER_DECADE)
        state = TrainState.create(copy.deepcopy(model), optimizer, machine)
        state.model.train()
        rates: list[float] = []
        losses: list[float] = []
        settled = round(5 * SMOOTHING_STEPS)  # so many steps later, smoothing no longer moves an index
        with seeded(0, "range test"):  # for layers that draw from the global stream, such as dropout
            for step, (images, labels) in zip(range(steps), _endless(batches), strict=False):
                rate = self.lowest * (self.highest / self.lowest) ** (step / (steps - 1))
                loss = float(train_step(state, images, labels, rate, objective, machine))
                # An explosion counts as a loss of twice the first, or it would drown the rates before it.
                ceiling = 2 * abs(losses[0]) if losses else loss
                rates.append(rate)
                losses.append(min(loss, ceiling) if math.isfinite(loss) else ceiling)
                if not math.isfinite(loss):
                    break
                indices = bracket(smooth(losses), losses)
                if indices is not None and indices[1] + settled < step:
                    break
        smoothed = smooth(losses)
        indices = bracket(smoothed, losses)
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
            peak_lr=_rounded(rates[peak]),
            min_lr=_rounded(rates[low]),
            peak_because=f"the highest rate before half or more of the loss's fall ({fall}) was lost again",
            min_because="the rate at which the first tenth of that fall was reached",
            seconds=time.perf_counter() - start,
        )


def _endless(batches: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def smooth(losses: Sequence[float], width: float = SMOOTHING_STEPS) -> list[float]:
    """Average each loss with its neighbours under a Gaussian whose standard deviation is `width` steps."""
    place = torch.arange(len(losses), dtype=torch.float64)
    weights = torch.exp(-(((place[:, None] - place) / width) ** 2) / 2)
    weights /= weights.sum(1, keepdim=True)
    return (weights @ torch.tensor(losses, dtype=torch.float64)).tolist()


def noise(losses: Sequence[float], smoothed: Sequence[float]) -> float:
    """Estimate the standard deviation of single losses around their smooth course, from the median."""
    apart = sorted(abs(loss - middle) for loss, middle in zip(losses, smoothed, strict=False))
    return 1.4826 * apart[len(apart) // 2] if apart else 0.0


def bracket(smoothed: Sequence[float], losses: Sequence[float] = ()) -> tuple[int, int] | None:
    """Return the indices of the lowest and of the highest useful rate; None where no fall is lost again.

    The first is where a tenth of the fall is reached. The second is the last one before the smoothed loss has
    lost half of its fall so far, or two single `losses` in a row three quarters of it. A fall within three
    times the noise of single losses is none.
    """
    least = max(LEAST_FALL * abs(smoothed[0]), 3 * noise(losses, smoothed)) if smoothed else 0.0
    bottom = 0
    for place, loss in enumerate(smoothed):
        if loss < smoothed[bottom]:
            bottom = place
        fall = smoothed[0] - smoothed[bottom]
        if fall <= least:
            continue
        leaps = losses[place : place + 2]
        leapt = len(leaps) == 2 and min(leaps) > smoothed[bottom] + 0.75 * fall
        if leapt or loss > smoothed[bottom] + 0.5 * fall:
            low = next(i for i, each in enumerate(smoothed) if each <= smoothed[0] - 0.1 * fall)
            return low, place - 1
    return None


def _rounded(rate: float) -> float:
    """Two significant digits: what a range test cannot tell apart should not look exact."""
    return float(f"{rate:.2g}")
