"""Trials: short trainings of a copy of the network, each scored on images that it did not see."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from firstlight.machine.machine import Machine
from firstlight.machine.streams import seeded
from firstlight.models.network import evaluating
from firstlight.training.loop import BatchSource, endless, train_step
from firstlight.training.objective import Objective
from firstlight.training.optimizers import OptimizerSpec
from firstlight.training.state import TrainState

TEMPERATURES = tuple(0.25 * 1.15**step for step in range(24))
STATISTICS_BATCHES = 8
"""Batches from which the statistics of batch norm are computed before a trial is scored."""

Scored = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trial:
    """One complete schedule at one peak rate.

    score: cross-entropy on the held-out images at the best of `TEMPERATURES`; infinite where it diverged.
    chance: the cross-entropy of predicting each class with its frequency.
    """

    rate: float
    steps: int
    score: float
    chance: float


@dataclass(frozen=True)
class Trials:
    """What all trials of a network share, so that their scores differ by the rate alone.

    model: untrained; a trial takes a copy. schedule: of the run, over `epochs`; its own rates are ignored.
    held_out: images with their labels, none of which is in `batches`.
    min_share: LRMIN as a share of LRMAX.
    """

    model: nn.Module
    batches: BatchSource
    held_out: Scored
    optimizer: OptimizerSpec
    machine: Machine
    objective: Objective
    schedule: Any  # a `Schedule` that is a dataclass, which no type can say
    epochs: int
    min_share: float

    def __call__(self, rate: float, steps: int) -> Trial:
        """Train over the whole schedule, compressed to so many steps, with the same images and draws."""
        cycle = self._cycle(rate, steps)
        state = TrainState.create(copy.deepcopy(self.model), self.optimizer, self.machine)
        state.model.train()
        with seeded(0, "trial"):  # for layers that draw from the global stream, such as dropout
            for step, (images, labels) in zip(range(steps), endless(self.batches), strict=False):
                loss = train_step(state, images, labels, cycle(step), self.objective, self.machine)
                if step % 8 == 7 and not math.isfinite(float(loss)):
                    return Trial(rate, steps, math.inf, self.chance)
            diverged = int(state.first_bad_step) >= 0
            score = math.inf if diverged else self._score(state.model)
        return Trial(rate, steps, score, self.chance)

    @property
    def chance(self) -> float:
        """The cross-entropy on the held-out images of predicting each class with its frequency there."""
        counts = torch.bincount(torch.cat([labels for _, labels in self.held_out])).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum())

    def _cycle(self, rate: float, steps: int) -> Callable[[int], float]:
        compressed = self.schedule.stretched(1 / self.epochs)
        chosen = dataclasses.replace(compressed, peak_lr=rate, min_lr=rate * self.min_share)
        return chosen.steps(1, steps)  # type: ignore[no-any-return]

    def _score(self, model: nn.Module) -> float:
        """Return the cross-entropy on the held-out images, calibrated.

        At the temperature that makes it least (Guo et al. 2017, arXiv 1706.04599, section 4.2): confidence
        after a short training is wrong in a way that a longer one mends. The running statistics of batch norm
        are computed anew before: after a few steps they are still those of the start.
        """
        with torch.no_grad(), self.machine.autocast():
            some = zip(range(STATISTICS_BATCHES), self.batches.epoch(0), strict=False)
            update_bn(((images,) for _, (images, _) in some), model)
            with evaluating(model):
                logits = torch.cat([model(images).float() for images, _ in self.held_out])
        labels = torch.cat([labels for _, labels in self.held_out])
        if not torch.isfinite(logits).all():
            return math.inf
        return min(float(F.cross_entropy(logits / t, labels)) for t in TEMPERATURES)
