"""The finder that measures nothing: the usual rates for an optimizer, a batch and a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from firstlight.machine.machine import Machine
from firstlight.training.loop import BatchSource
from firstlight.training.lr_finder import MIN_BECAUSE, MIN_SHARE, LRFinding, rounded
from firstlight.training.optimizers import OptimizerSpec, usual_lr


@dataclass(frozen=True)
class Constant:
    """The usual rate, from which a race starts too: what was best in runs of other networks and images."""

    def expected_steps(self, total: int) -> int:
        return 0

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        epochs: int = 24,
        **rest: Any,
    ) -> LRFinding:
        peak = rounded(usual_lr(optimizer, batches.batch_size, epochs * len(batches)))
        because = (
            f"the usual rate of {type(optimizer).__name__} for this batch and length; nothing was measured"
        )
        return LRFinding(
            rates=(),
            losses=(),
            smoothed=(),
            peak_lr=peak,
            min_lr=rounded(peak * MIN_SHARE),
            peak_because=because,
            min_because=MIN_BECAUSE,
            seconds=0.0,
            method="constant",
            verdict="usual",
            cost=0.0,
        )
