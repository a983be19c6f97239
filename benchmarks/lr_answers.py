"""Ask learning-rate finders for their answers in the settings of lr_regret.py.

    python -m benchmarks.lr_answers --data-dir DIR [--apart]

Ours come with the package. Of fastai, Lightning and torch-lr-finder the rule that chooses is their own code;
the curve is measured as each of them does by default: 100 steps, from 1e-7 to 10 (Lightning: 1e-8 to 1), with
its smoothing and its end. Where a package is not installed its rows are left out, and a line says so:

    pip install --no-deps fastai lightning torch-lr-finder     (fastai works without its torchvision here)

Restartable: what lr_answers.csv holds is not done again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import lr_regret, measure
from benchmarks.lr_calibration import all_tops, calibrated, usual
from firstlight.errors import InputError
from firstlight.jobs.job import Job
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.training.constant import Constant
from firstlight.training.loop import endless, train_step
from firstlight.training.race import Calibration, Race
from firstlight.training.range_test import RangeTest
from firstlight.training.state import TrainState

TABLE = Path(__file__).with_suffix(".csv")
SEEDS, OTHERS_SEEDS = 5, 3
"""Seeds for which our finders, and those of others, are asked."""
OURS = ("race", "constant", "range test")
FASTAI = ("valley", "slide", "minimum", "steep")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One step at each of `steps` rates, evenly spaced in their logarithm, as a package does it.

    weight: of the newest loss in the running mean. corrected: whether that mean is divided by the weight it
    has so far. diverged: it ends where the mean is so many times the least.
    """

    low: float
    high: float
    weight: float
    corrected: bool
    diverged: float
    steps: int = 100

    def __call__(self, job: Job) -> tuple[list[float], list[float]]:
        """Return (rates, smoothed losses), measured on a copy of the network."""
        state = TrainState.create(copy.deepcopy(job.model), job.recipe.optimizer, job.machine)
        state.model.train()
        rates: list[float] = []
        losses: list[float] = []
        mean = 0.0
        with seeded(0, "sweep"):
            for step, (images, labels) in zip(range(self.steps), endless(job.batches), strict=False):
                rate = self.low * (self.high / self.low) ** (step / (self.steps - 1))
                loss = float(train_step(state, images, labels, rate, job.recipe.objective, job.machine))
                mean = loss if not (step or self.corrected) else mean + self.weight * (loss - mean)
                smoothed = mean / (1 - (1 - self.weight) ** (step + 1)) if self.corrected else mean
                rates.append(rate)
                losses.append(smoothed)
                if not math.isfinite(smoothed) or smoothed > self.diverged * min(losses):
                    break
        return rates, losses


SWEEPS = {
    "fastai": Sweep(1e-7, 10.0, weight=0.02, corrected=True, diverged=4.0),
    "lightning": Sweep(1e-8, 1.0, weight=0.02, corrected=True, diverged=4.0),
    "torch-lr-finder": Sweep(1e-7, 10.0, weight=0.05, corrected=False, diverged=5.0),
}


def fastai_rule(name: str, rates: Sequence[float], losses: Sequence[float]) -> float:
    rule = getattr(importlib.import_module("fastai.callback.schedule"), name)
    # As `Learner.lr_find` cuts the curve.
    kept = [torch.tensor(values[10:-5]) for values in (rates, losses)]
    return float(rule(*kept, 100)[0])


def lightning_rule(rates: Sequence[float], losses: Sequence[float]) -> float:
    module = importlib.import_module("lightning.pytorch.tuner.lr_finder")
    finder = module._LRFinder("exponential", 1e-8, 1.0, 100)
    finder.results = {"lr": list(rates), "loss": list(losses)}
    return float(finder.suggestion())


def torch_lr_finder_rule(rates: Sequence[float], losses: Sequence[float]) -> float:
    module = importlib.import_module("torch_lr_finder")
    finder = object.__new__(module.LRFinder)
    finder.history = {"lr": list(rates), "loss": list(losses)}
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    _, rate = finder.plot(ax=plt.figure().add_subplot(), suggest_lr=True)
    plt.close("all")
    return float(rate)


RULES: dict[str, tuple[str, Callable[[Sequence[float], Sequence[float]], float]]] = {
    **{f"fastai {name}": ("fastai", lambda r, v, name=name: fastai_rule(name, r, v)) for name in FASTAI},  # type: ignore[misc]
    "lightning": ("lightning", lightning_rule),
    "torch-lr-finder": ("torch-lr-finder", torch_lr_finder_rule),
}


def answers(
    name: str, seed: int, data_dir: Path | None, usual: float, calibration: Calibration
) -> list[dict[str, Any]]:
    """Return a row for each finder: its answer, what it took in steps and seconds, and a race's words.

    usual, calibration: from settings other than this one.
    """
    job = lr_regret.ready(name, seed, data_dir)
    finders = {
        "race": Race(start=usual, calibration=calibration),
        "constant": Constant(),
        "range test": RangeTest(),
    }
    rows = []
    for kind, finder in finders.items():
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, finder=finder))
        start = time.perf_counter()
        try:
            finding = job.find_rates()
        except InputError as error:
            rows.append(_row(name, kind, seed, None, words=error.message))
            continue
        rate = usual if kind == "constant" else finding.peak_lr
        rows.append(
            _row(
                name,
                kind,
                seed,
                rate,
                seconds=round(time.perf_counter() - start, 2),
                cost=finding.cost,
                verdict=finding.verdict,
                low=finding.interval and finding.interval[0],
                high=finding.interval and finding.interval[1],
                regret=finding.regret,
                words=finding.peak_because,
            )
        )
    if seed >= OTHERS_SEEDS:
        return rows
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for kind, (package, rule) in RULES.items():
        if package not in curves:
            curves[package] = SWEEPS[package](job)
        try:
            rows.append(_row(name, kind, seed, rule(*curves[package])))
        except ModuleNotFoundError as error:
            print(f"{kind} is left out: {error}", flush=True)
        except Exception as error:
            rows.append(_row(name, kind, seed, None, words=f"{type(error).__name__}: {error}"))
    return rows


def _row(name: str, kind: str, seed: int, rate: float | None, **values: Any) -> dict[str, Any]:
    return {"setting": name, "finder": kind, "seed": seed, "rate": rate, **values}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data-dir", type=Path)
    options.add_argument("--apart", action="store_true", help="the settings that were kept apart")
    arguments = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    rows = measure.read_rows(lr_regret.TABLE)
    tops = all_tops(rows)
    there = {(row["setting"], row["seed"]) for row in measure.read_rows(TABLE)}
    machine = choose(precision="bf16")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = []
        for setting in lr_regret.KEPT_APART if arguments.apart else lr_regret.SETTINGS:
            name = setting.name
            if name not in tops:
                continue
            start = usual(name, {other: value for other, value in tops.items() if other != name})
            calibration = calibrated(rows, without=name)
            for seed in range(SEEDS):
                if (name, str(seed)) not in there:
                    work = answers, name, seed, arguments.data_dir, start, calibration
                    waiting.append(pool.submit(*work))
        for future in as_completed(waiting):
            for row in future.result():
                measure.record(__file__, machine, **row)


if __name__ == "__main__":
    main()
