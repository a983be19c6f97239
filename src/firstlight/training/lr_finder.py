"""What a finder of learning rates is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.training.loop import BatchSource
from firstlight.training.objective import Objective
from firstlight.training.optimizers import OptimizerSpec
from firstlight.training.schedule import OneCycle, Schedule

MIN_SHARE = 0.02
"""LRMIN as a share of LRMAX, where a finder measures LRMAX alone."""
MIN_BECAUSE = "a fiftieth of LRMAX: from a thousandth to a tenth no difference was seen (docs/finder.md)"


@dataclass(frozen=True)
class LRFinding:
    """The rates that a finder proposes for a schedule, and the measurements behind them.

    rates, losses, smoothed: one entry for each rate that was tried: the rate, the loss as it was measured,
        and the loss by which the finder judged. A race has tried them from the lowest to the highest.
    peak_because, min_because: one sentence each on how the rate was chosen.
    seconds: what it took; cost: the same as a share of the run, None where the run is not known.
    method: of the finder, in words. verdict: what a race found, one of `race.VERDICTS`; "" elsewhere.
    interval: rates between which the best one lies with a probability of 80 %, None where unknown.
    flat: rates between which a race expects no difference that matters, None where unknown.
    regret: accuracy that the answer is expected to cost beside the best rate, a fraction; None where unknown.
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
    verdict: str = ""
    cost: float | None = None
    interval: tuple[float, float] | None = None
    flat: tuple[float, float] | None = None
    regret: float | None = None

    def __str__(self) -> str:
        return f"LRMAX {self.peak_lr:g}: {self.peak_because}\nLRMIN {self.min_lr:g}: {self.min_because}"

    @property
    def extent(self) -> str:
        """What was done, in words: the method, how often it measured, and what that cost."""
        count = len(self.rates)
        what = f"{count} trials" if self.method == "race" else f"{count} steps"
        share = "" if self.cost is None else f", {self.cost:.0%} of the run"
        return f"{self.method}, {what}{share}" if count else self.method

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LRFinding:
        """Read what `to_json` returned; InputError where it is something else."""
        try:
            curves = {key: tuple(values[key]) for key in ("rates", "losses", "smoothed")}
            pairs = {key: tuple(values[key]) for key in ("interval", "flat") if values.get(key) is not None}
            return cls(**{**values, **curves, **pairs})
        except (KeyError, TypeError) as error:
            raise InputError(f"not a learning-rate finding: {error}") from None


class Finder(Protocol):
    """The choice of a finder: a frozen dataclass that finds the rates on copies of the network."""

    def expected_steps(self, total: int) -> int:
        """Return about how many training steps it takes for a run of `total` steps."""
        ...

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        objective: Objective = Objective(),
        schedule: Schedule = OneCycle(),
        epochs: int = 24,
        log: Callable[[str], None] = lambda line: None,
    ) -> LRFinding:
        """Return both rates; raises InputError where there are none.

        The caller's weights, statistics and random streams are left alone. schedule, epochs: of the run that
        the rates are for. log: called with a line for each rate that is tried, where that takes long.
        """
        ...


def rounded(rate: float) -> float:
    """Two significant digits: what a finder cannot tell apart should not look exact."""
    return float(f"{rate:.2g}")
