"""Learning-rate schedules: what a recipe holds, and the pure function from the step to the rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from firstlight.errors import InputError

CURVES = ("linear", "cosine")


class Schedule(Protocol):
    """The choice of a schedule, in epochs: a frozen dataclass; a rate is None where a finder finds it."""

    @property
    def peak_lr(self) -> float | None: ...

    @property
    def min_lr(self) -> float | None: ...

    def with_rates(self, peak_lr: float, min_lr: float) -> Schedule:
        """Return the schedule with the rates that it leaves open set to these."""
        ...

    def stretched(self, ratio: float) -> Schedule:
        """Return the schedule over `ratio` times as many epochs."""
        ...

    def check(self, epochs: int) -> None:
        """Raise InputError where it does not fit a run of so many epochs."""
        ...

    def steps(self, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the function from the step, counted from 0, to the rate."""
        ...


@dataclass(frozen=True)
class OneCycle:
    """The one-cycle policy (Smith & Topin 2017, arXiv 1708.07120) without annihilation.

    peak_epoch: the rate is highest on the last step of this epoch, counted from 1; may be a fraction.
    peak_lr: the highest rate; found by the finder where it is left open.
    min_lr: the rate of the first and of the last step; found by the finder where it is left open.
    curve: between them, "linear" or "cosine".
    """

    peak_epoch: float = 5.0
    peak_lr: float | None = None
    min_lr: float | None = None
    curve: str = "linear"

    def __post_init__(self) -> None:
        for key, rate in (("peak_lr", self.peak_lr), ("min_lr", self.min_lr)):
            if rate is not None and not 0 < rate < math.inf:
                raise InputError(f"{key} must be a positive number, not {rate}")
        if self.peak_lr is not None and self.min_lr is not None and self.min_lr > self.peak_lr:
            raise InputError(f"min_lr {self.min_lr:g} is above peak_lr {self.peak_lr:g}")
        _check_curve(self.curve)

    def with_rates(self, peak_lr: float, min_lr: float) -> OneCycle:
        peak = self.peak_lr if self.peak_lr is not None else peak_lr
        # An LRMIN that was found yields to a lower peak that was set.
        low = self.min_lr if self.min_lr is not None else min(min_lr, peak)
        return replace(self, peak_lr=peak, min_lr=low)

    def stretched(self, ratio: float) -> OneCycle:
        return replace(self, peak_epoch=self.peak_epoch * ratio)

    def check(self, epochs: int) -> None:
        if not 0 < self.peak_epoch <= epochs:
            raise InputError(
                f"the peak, epoch {self.peak_epoch:g}, lies outside the {epochs} epochs of the run",
                f"Set peak_epoch above 0 and at most {epochs}.",
            )

    def steps(self, epochs: int, steps_per_epoch: int) -> Cycle:
        if self.peak_lr is None or self.min_lr is None:
            raise InputError("the schedule leaves a rate open", "Set peak_lr and min_lr, or run the finder.")
        peak_step = max(round(self.peak_epoch * steps_per_epoch) - 1, 0)
        return Cycle(self.peak_lr, self.min_lr, epochs * steps_per_epoch, peak_step, self.curve)


@dataclass(frozen=True)
class Cycle:
    """The rates of a one-cycle schedule: a function of the step.

    The rate is `min_lr` at step 0, `peak_lr` at `peak_step` and `min_lr` again at the last step,
    `total_steps - 1`; it never falls below `min_lr`. Momentum is left alone. Equal to torch's
    `OneCycleLR` with pct_start=(peak_step + 1) / total_steps, div_factor=peak_lr / min_lr,
    final_div_factor=1 and cycle_momentum=False.
    """

    peak_lr: float
    min_lr: float
    total_steps: int
    peak_step: int
    curve: str = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.peak_lr or not math.isfinite(self.peak_lr):
            raise InputError(
                f"rates must satisfy 0 ≤ min_lr ≤ peak_lr, not {self.min_lr:g} and {self.peak_lr:g}"
            )
        if not 0 <= self.peak_step < self.total_steps:
            raise InputError(f"the peak, step {self.peak_step}, lies outside the {self.total_steps} steps")
        _check_curve(self.curve)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, 0 ≤ step < total_steps."""
        if step <= self.peak_step:
            share = step / self.peak_step if self.peak_step else 1.0
        else:
            share = (self.total_steps - 1 - step) / (self.total_steps - 1 - self.peak_step)
        if self.curve == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        # Written so that both ends come out exactly, without rounding.
        return self.min_lr * (1 - share) + self.peak_lr * share


def _check_curve(curve: str) -> None:
    if curve not in CURVES:
        raise InputError(f"unknown schedule {curve!r}", f"Known: {', '.join(CURVES)}.")
