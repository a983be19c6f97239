"""Several seeds of one recipe: each a whole run, and what their mean and spread say of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from firstlight.errors import InputError
from firstlight.insight.intervals import Spread
from firstlight.jobs.cells import (
    CellsRecord,
    Log,
    Plan,
    Train,
    cost,
    one_after_another,
    seeds_from,
    stops_explained,
)
from firstlight.jobs.failures import failures_explained
from firstlight.jobs.job import Job
from firstlight.jobs.resume import begun_record, pinned
from firstlight.machine.clock import duration
from firstlight.recipe import Recipe
from firstlight.record.run_folder import RunFolder
from firstlight.run import Run

SEEDS = "seeds.json"
"""In the outer folder: which seeds of which recipe, and what came out of them so far."""


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
    def of(cls, path: Path, runs: tuple[Run, ...]) -> Self:
        """Take mean and spread of finished runs; raises InputError where one lacks a number."""
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


class SeedsRecord(CellsRecord):
    """The folder of several seeds: which were asked for, and each run in a folder of its own."""

    NAME: ClassVar[str] = SEEDS

    def check_seeds(self, seeds: range) -> None:
        """Raise InputError where it was begun with seeds that are not among these."""
        before = self.environment.get("seeds")
        if not isinstance(before, list) or not all(isinstance(seed, int) for seed in before):
            raise InputError(f"{self.path / SEEDS} names no seeds")
        if not set(before) <= set(seeds):
            message = f"{self.path} was begun with {len(before)} seeds, not {len(seeds)}"
            raise InputError(message, "Give as many or more, or another --out.")

    def run_path(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"

    def finished(self, seeds: range) -> dict[int, Run]:
        """Return the runs that came to their end."""
        runs = {seed: Run(RunFolder(self.run_path(seed))) for seed in seeds}
        return {seed: run for seed, run in runs.items() if run.is_finished}

    def write(self, header: Mapping[str, Any], runs: Mapping[int, Run], result: Seeds | None = None) -> None:
        """Write what is known so far; with `result` it is all."""
        keys = ("test_accuracy", "test_accuracy_tta", "train_seconds", "wall_seconds")
        rows = [
            {"seed": seed, "folder": f"seed-{seed}", **{key: getattr(run.summary, key) for key in keys}}
            for seed, run in sorted(runs.items())
        ]
        numbers = {} if result is None else result.to_json()
        self.folder.write_json(SEEDS, {**header, "finished": result is not None, "runs": rows, **numbers})


def train_seeds(
    recipe: Recipe,
    count: int,
    one: Train,
    data_dir: str | Path | None,
    out: str | Path | None,
    resume: bool | str,
    device: str,
    precision: str,
    determinism: str,
    log: Log,
) -> Seeds:
    """Train `count` seeds of a recipe, the recipe's own first, each a run of its own in OUT/seed-N.

    one: `train` for a single recipe. device, precision: what they come to for the first seed is that of all.
    """
    seeds = seeds_from(recipe.seed, count)
    path, data = (None if each is None else Path(each) for each in (out, data_dir))
    begun = begun_record(SeedsRecord, recipe, path, resume)
    if begun is not None and begun.is_begun:
        begun.check_seeds(seeds)
    device, precision = pinned(begun, device, precision)
    runs = {} if begun is None else begun.finished(seeds)
    job = None
    if len(runs) < count:
        job = Job.prepare(recipe, data, device, precision, determinism)
        device, precision = job.machine.device.type, job.machine.precision
    record = begun or SeedsRecord(RunFolder.create(recipe.name, path))
    header = {"recipe": recipe.to_json(), "device": device, "precision": precision, "seeds": list(seeds)}
    options = {"data_dir": data_dir, "device": device, "precision": precision, "determinism": determinism}
    plans = {
        seed: Plan(
            dataclasses.replace(recipe, seed=seed), record.run_path(seed), f"seed {seed}, {number} of {count}"
        )
        for number, seed in enumerate(seeds, 1)
    }
    with record.folder.lock():
        record.folder.sweep()
        if job is not None:
            with failures_explained(record.path, job):
                record.write(header, runs)
                left = count - len(runs)
                rest = "" if left == count else f" for the {left} that are left"
                log(f"{_seeds(count)} of {recipe.name}: {cost(job, left)}{rest}")
            job = None  # its images and network would lie beside those of every seed
        else:
            log(f"{record.path} is finished already")

        def done() -> str:
            return f"{len(runs)} of {count} seeds are finished"

        left_plans = [plan for seed, plan in plans.items() if seed not in runs]
        with stops_explained(record, done, "the same command with --resume", log):
            for plan, failure in one_after_another(left_plans, one, options, log):
                if failure is not None:
                    raise failure
                runs[plan.recipe.seed] = Run(RunFolder(plan.path))
                record.write(header, runs)
            result = Seeds.of(record.path, tuple(runs[seed] for seed in seeds))
            record.write(header, runs, result)
    log(f"\n{result}\nseeds     {record.path / SEEDS}")
    return result
