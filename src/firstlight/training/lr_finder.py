"""The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3), on a copy of the network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.runtime import Machine, seeded
from firstlight.training.loop import BatchSource, Objective, TrainState, train_step
from firstlight.training.optimizers import OptimizerSpec


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


FALL_REACHED = 0.1
FALL_LOST = 0.5
CEILING = 2.0
STEPS_PER_DECADE = 20
SMOOTHING_STEPS = 3.0


def range_test(
    model: nn.Module,
    batches: BatchSource,
    optimizer: OptimizerSpec,
    machine: Machine,
    *,
    objective: Objective = Objective(),
    lowest: float = 1e-4,
    highest: float = 10.0,
) -> LRFinding:
    """Raise the rate from step to step, evenly in its logarithm, until the fall of the loss is wholly lost.

    The loss is smoothed symmetrically, so that no curve lags behind its rate. `min_lr` is the rate at
    which the first tenth of the fall was reached, `peak_lr` the last rate before, beyond the lowest
    point, half of it was lost again: there the curve is steepest, so noise moves the answer least, and
    a run that warms up for epochs bears more than a test that warms up for seconds. It works on a
    copy: weights, statistics and random state of the caller are left alone. Raises InputError where
    the loss never fell, or fell to the very end.
    """
    start = time.perf_counter()
    steps = 1 + round(math.log10(highest / lowest) * STEPS_PER_DECADE)
    state = TrainState.create(copy.deepcopy(model), optimizer, machine)
    state.model.train()
    rates: list[float] = []
    losses: list[float] = []
    # What draws from the global stream, such as dropout, must not move the caller's.
    with seeded(0, "range test"):
        for step, (images, labels) in zip(range(steps), _endless(batches), strict=False):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            loss = float(train_step(state, images, labels, rate, objective, machine))
            finite = math.isfinite(loss)
            if not losses and not finite:
                break
            # One huge loss, smoothed, would drown a decade of rates before it.
            ceiling = CEILING * losses[0] if losses else loss
            rates.append(rate)
            losses.append(min(loss, ceiling) if finite else ceiling)
            if not finite or _is_lost(losses):
                break
    smoothed = smooth(losses)
    low, peak = bracket(smoothed)
    fall = f"from {smoothed[0]:.2f} to {min(smoothed):.2f}"
    return LRFinding(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        peak_lr=_rounded(rates[peak]),
        min_lr=_rounded(rates[low]),
        peak_because=f"the highest rate before half of the loss's fall ({fall}) was lost again",
        min_because="the rate at which the first tenth of that fall was reached",
        seconds=time.perf_counter() - start,
    )


def _is_lost(losses: list[float], few: int = 5) -> bool:
    """Tell whether the last few losses all lie above the first few, after a fall that was no noise."""
    return min(losses) < 0.9 * min(losses[:few]) and min(losses[-few:]) > max(losses[:few])


def _endless(batches: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def smooth(losses: list[float], width: float = SMOOTHING_STEPS) -> list[float]:
    """Average each loss with its neighbours under a Gaussian whose standard deviation is `width` steps."""
    place = torch.arange(len(losses), dtype=torch.float64)
    weights = torch.exp(-(((place[:, None] - place) / width) ** 2) / 2)
    weights /= weights.sum(1, keepdim=True)
    return (weights @ torch.tensor(losses, dtype=torch.float64)).tolist()


def bracket(smoothed: list[float]) -> tuple[int, int]:
    """Return the places of the lowest and of the highest useful rate on a smoothed curve."""
    bottom = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    fall = smoothed[0] - smoothed[bottom] if smoothed else 0.0
    if fall < 0.02 * abs(smoothed[0] if smoothed else 1.0):
        raise InputError(
            "the learning-rate range test saw no rate at which the loss falls",
            "Give the rates: --set peak_lr=… --set min_lr=…",
        )
    low = next(i for i, loss in enumerate(smoothed) if loss <= smoothed[0] - FALL_REACHED * fall)
    beyond = [i for i in range(bottom, len(smoothed)) if smoothed[i] > smoothed[bottom] + FALL_LOST * fall]
    if not beyond:
        raise InputError(
            "the learning-rate range test saw the loss fall up to its highest rate",
            "Give the rates: --set peak_lr=… --set min_lr=…",
        )
    return low, max(beyond[0] - 1, low)


def _rounded(rate: float) -> float:
    """Two significant digits: what a range test cannot tell apart should not look exact."""
    return float(f"{rate:.2g}")
