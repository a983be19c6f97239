"""Learning-rate schedules: pure functions from the step to the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firstlight.errors import InputError

CURVES = ("linear", "cosine")


@dataclass(frozen=True)
class OneCycle:
    """The one-cycle policy (Smith & Topin 2017, arXiv 1708.07120) without annihilation.

    The rate is `min_lr` at step 0, `peak_lr` at `peak_step` and `min_lr` again at the last step,
    `total_steps - 1`; it never falls below `min_lr`. Momentum is left alone. Equal to torch's
    `OneCycleLR` with pct_start=(peak_step + 1) / total_steps, div_factor=peak_lr / min_lr,
    final_div_factor=1 and cycle_momentum=False.
    """

    peak_lr: float
    min_lr: float
    total_steps: int
    peak_step: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.peak_lr or not math.isfinite(self.peak_lr):
            raise InputError(
                f"rates must satisfy 0 ≤ min_lr ≤ peak_lr, not {self.min_lr:g} and {self.peak_lr:g}"
            )
        if not 0 <= self.peak_step < self.total_steps:
            raise InputError(f"the peak, step {self.peak_step}, lies outside the {self.total_steps} steps")
        if self.shape not in CURVES:
            raise InputError(f"unknown schedule shape {self.shape!r}", 'Known: "linear", "cosine".')

    @classmethod
    def over_epochs(
        cls,
        peak_lr: float,
        min_lr: float,
        *,
        epochs: int,
        peak_epoch: float,
        steps_per_epoch: int,
        shape: str = "linear",
    ) -> OneCycle:
        """Place the peak on the last step of epoch `peak_epoch`, counted from 1."""
        peak_step = max(round(peak_epoch * steps_per_epoch) - 1, 0)
        return cls(peak_lr, min_lr, epochs * steps_per_epoch, peak_step, shape)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, 0 ≤ step < total_steps."""
        if step <= self.peak_step:
            done = step / self.peak_step if self.peak_step else 1.0
        else:
            done = (self.total_steps - 1 - step) / (self.total_steps - 1 - self.peak_step)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        # Written so that both ends come out exactly, without rounding.
        return self.min_lr * (1 - done) + self.peak_lr * done
