"""`Seeds`: what came out of several seeds of one recipe, with its spread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from firstlight.errors import InputError
from firstlight.insight.intervals import Spread
from firstlight.machine.clock import duration
from firstlight.record.run_folder import RunFolder
from firstlight.record.sweep import Sweep
from firstlight.run import Run


@dataclass(frozen=True)
class Seeds:
    """Finished runs that differ in their seed alone. accuracies: on the test set, without TTA, as fractions.

    sd: of one run; None of a single seed. interval: 95 %, of the mean over seeds, by Student's t; of a
        single seed that of its one accuracy, over the test images.
    """

    path: Path
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float]
    accuracies_tta: tuple[float, ...]
    mean_tta: float
    sd_tta: float | None
    interval_tta: tuple[float, float]
    train_seconds: float

    @classmethod
    def of(cls, sweep: Sweep) -> Self:
        """Take mean and spread of a sweep with one setting; raises InputError where a run lacks a number."""
        path, runs = sweep.path, tuple(Run(RunFolder(sweep.path / cell.folder)) for cell in sweep.cells)
        plain, averaged, seconds = (
            Spread(tuple(_number(run, key) for run in runs))
            for key in ("test_accuracy", "test_accuracy_tta", "train_seconds")
        )
        intervals = _interval(plain, runs[0], tta=False), _interval(averaged, runs[0], tta=True)
        return cls(
            *(path, runs, plain.values, plain.mean, plain.sd, intervals[0]),
            *(averaged.values, averaged.mean, averaged.sd, intervals[1], seconds.mean),
        )

    def __str__(self) -> str:
        """Say accuracy with its spread, without and with TTA, and the mean time of training."""
        one = len(self.runs) == 1
        what = "over test images, since one seed says nothing of others" if one else "of the mean, over seeds"

        def spread(sd: float | None, interval: tuple[float, float]) -> str:
            scatter = "" if sd is None else f"sd {sd:.2%}, "
            return f"{scatter}95 % interval {interval[0]:.2%} to {interval[1]:.2%} {what}"

        return (
            f"{_seeds(len(self.runs))}: test accuracy {self.mean:.2%} without TTA "
            f"({spread(self.sd, self.interval)})\n"
            f"{self.mean_tta:.2%} with TTA ({spread(self.sd_tta, self.interval_tta)})\n"
            f"training took {duration(self.train_seconds)}{'' if one else ' on average'}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that stand beside those of each run."""
        over = "images" if len(self.runs) == 1 else "seeds"
        rows = {
            "test_accuracy": (self.mean, self.sd, list(self.interval), over),
            "test_accuracy_tta": (self.mean_tta, self.sd_tta, list(self.interval_tta), over),
        }
        names = ("mean", "sd", "interval_95", "interval_over")
        numbers = {key: dict(zip(names, row, strict=True)) for key, row in rows.items()}
        return {**numbers, "train_seconds": self.train_seconds}


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _number(run: Run, key: str) -> float:
    value: float | None = getattr(run.summary, key)
    if value is None:
        raise InputError(f"{run.path} has no {key}", "Go on with it: the same command with --resume.")
    return value


def _interval(spread: Spread, run: Run, *, tta: bool) -> tuple[float, float]:
    """Return the interval of the mean, within what a fraction can be; of a single run that over images."""
    if spread.interval is not None:
        low, high = spread.interval
        return max(0.0, low), min(1.0, high)
    evaluation = run.evaluation_tta if tta else run.evaluation
    if evaluation is None:
        raise InputError(f"{run.path} holds no predictions")
    return evaluation.interval
