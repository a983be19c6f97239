"""Measure what the answers of learning-rate finders cost: their regret, over settings of quick runs.

    python -m benchmarks.lr_regret runs --data-dir DIR      final accuracies over a grid of rates
    python -m benchmarks.lr_regret trials --data-dir DIR    scores of short trials over the same grid
    python -m benchmarks.lr_regret shares --data-dir DIR    final accuracies at other shares for LRMIN

Every step is restartable: what lr_regret.csv holds is not done again. A run is scored on 5,000 images of the
training set that are in none of its parts; the test set is not read. Two processes of one thread each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.data.cifar10 import Cifar10
from firstlight.data.images import ImageSet
from firstlight.data.shapes import Shapes
from firstlight.data.source import Source
from firstlight.errors import Diverged
from firstlight.insight.evaluation import evaluate
from firstlight.jobs.job import Job
from firstlight.machine.machine import choose
from firstlight.machine.streams import stream
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.recipe import Recipe
from firstlight.training.loop import fit
from firstlight.training.lr_finder import MIN_SHARE
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, AdamW, Muon
from firstlight.training.schedule import OneCycle
from firstlight.training.trials import Trials

TABLE = Path(__file__).with_suffix(".csv")
SCORED = 5000
SEEDS, MORE_SEEDS = 3, 6
TRIAL_STEPS = (8, 16, 32, 64)
NEAR_TOP = 0.015
"""Rates within this of the best mean accuracy get `MORE_SEEDS` instead of `SEEDS`."""
MIN_SHARES = (0.001, 0.1, 0.3)
"""Shares of LRMAX as LRMIN beside the usual one, at the best rate of a setting."""


class Plain(nn.Sequential):
    """A network without normalisation: three convolutions with bias, each with a max-pool."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


@dataclasses.dataclass(frozen=True)
class Setting:
    """images: to train on. noise: share of training labels replaced by another one."""

    name: str
    recipe: Recipe
    images: int
    noise: float = 0.0

    @property
    def rates(self) -> list[float]:
        """Nine rates, factors of 2 apart, to both sides of what anybody would give."""
        middle = {SGD: 0.4, AdamW: 0.004, Muon: 0.08}[type(self.recipe.optimizer)]  # type: ignore[index]
        if self.name.startswith("plain"):
            middle /= 2
        return [middle * 2.0**octave for octave in range(-5, 4)]


def _recipe(source: Source, model: Any, optimizer: Any, batch: int, epochs: int, **more: Any) -> Recipe:
    return Recipe(
        name="regret",
        data=source,
        model=model,
        augment=(Crop(32, pad=4), FlipLR(), Cutout(8)),
        optimizer=optimizer,
        schedule=OneCycle(peak_epoch=epochs * 5 / 24),
        batch_size=batch,
        epochs=epochs,
        validation=0,
        **more,
    )


CIFAR = Cifar10()
DRAWN = Shapes(train=4000 + SCORED, test=1)
SMALL = Shapes(train=4000 + SCORED, test=1, object_size=50)
RESNET = CustomResNetSpec(width=8, bias=False, logit_scale=0.125)
NARROW = CustomResNetSpec(width=4, bias=False, logit_scale=0.125)
FAST = FastNetSpec(widths=(16, 48, 64))
FAST_MUON = Muon(momentum=0.8, bias_lr_factor=240.0, linear_lr_factor=16.0, weight_decay=0.05)
SMOOTH = Objective(label_smoothing=0.2)

SETTINGS = (
    Setting("resnet8 cifar4k sgd b128 e6", _recipe(CIFAR, RESNET, SGD(), 128, 6), 4000),
    Setting("plain cifar4k sgd b128 e8", _recipe(CIFAR, Plain, SGD(), 128, 8), 4000),
    Setting("resnet8 shapes4k adamw b128 e5", _recipe(DRAWN, RESNET, AdamW(), 128, 5), 4000),
    Setting("fast cifar4k muon b128 e5", _recipe(CIFAR, FAST, FAST_MUON, 128, 5, objective=SMOOTH), 4000),
    Setting("resnet8 small4k sgd b128 e8", _recipe(SMALL, RESNET, SGD(), 128, 8), 4000),
    Setting("resnet8 shapes500 sgd b32 e30", _recipe(DRAWN, RESNET, SGD(), 32, 30), 500),
    Setting("plain cifar2k adamw b32 e8", _recipe(CIFAR, Plain, AdamW(), 32, 8), 2000),
    Setting("resnet8 shapes2k muon b128 e10", _recipe(DRAWN, RESNET, Muon(), 128, 10), 2000),
    Setting("resnet8 cifar4k noisy sgd b128 e6", _recipe(CIFAR, RESNET, SGD(), 128, 6), 4000, 0.1),
    Setting("resnet4 cifar20k sgd b512 e2", _recipe(CIFAR, NARROW, SGD(), 512, 2), 20_000),
    Setting("resnet4 cifar10k adamw b512 e4", _recipe(CIFAR, NARROW, AdamW(), 512, 4), 10_000),
    Setting("resnet8 cifar2k sgd b128 e24", _recipe(CIFAR, RESNET, SGD(), 128, 24), 2000),
)
KEPT_APART = (
    Setting("fast cifar4k sgd b128 e5", _recipe(CIFAR, FAST, SGD(), 128, 5, objective=SMOOTH), 4000),
    Setting("resnet8 small2k adamw b32 e8", _recipe(SMALL, RESNET, AdamW(), 32, 8), 2000),
    Setting("resnet8 cifar4k muon b512 e8", _recipe(CIFAR, RESNET, Muon(), 512, 8), 4000),
)
"""Not looked at while the finder was designed."""

ALL = {setting.name: setting for setting in (*SETTINGS, *KEPT_APART)}


@functools.cache
def load(name: str, data_dir: Path | None) -> tuple[ImageSet, ImageSet]:
    """Return (train, scored): disjoint parts of the training set."""
    setting = ALL[name]
    images, _ = setting.recipe.data.load(data_dir)
    order = torch.randperm(len(images), generator=stream(0, "regret"))
    train, scored = images.subset(order[: setting.images]), images.subset(order[-SCORED:])
    if setting.noise:
        draws = stream(0, "noise")
        flipped = torch.rand(len(train), generator=draws) < setting.noise
        moved = torch.randint(1, len(train.classes), (len(train),), generator=draws)
        labels = torch.where(flipped, (train.labels + moved) % len(train.classes), train.labels)
        train = dataclasses.replace(train, labels=labels)
    return train, scored


def ready(name: str, seed: int, data_dir: Path | None) -> Job:
    recipe = dataclasses.replace(ALL[name].recipe, seed=seed)
    return Job.with_images(*load(name, data_dir), recipe, choose(precision="bf16"))


def one_run(
    name: str, rate: float, seed: int, data_dir: Path | None, share: float = MIN_SHARE
) -> dict[str, Any]:
    """Train to the end at one peak rate, and score it; chance where it diverges."""
    job = ready(name, seed, data_dir)
    recipe, machine, state = job.recipe, job.machine, job.state()
    schedule = dataclasses.replace(recipe.schedule, peak_lr=rate, min_lr=rate * share)  # type: ignore[type-var]
    cycle = schedule.steps(recipe.epochs, len(job.batches))
    try:
        for _ in fit(
            state, job.batches, cycle, epochs=recipe.epochs, machine=machine, objective=recipe.objective
        ):
            pass
        accuracy = evaluate(state.trained, job.test, machine).accuracy
    except Diverged:
        accuracy = 1 / len(job.test.classes)
    kind = "run" if share == MIN_SHARE else f"run, LRMIN {share:g}"
    return _row(name, kind, seed, rate, accuracy=accuracy, seconds=state.seconds)


def one_trial(name: str, kind: str, rate: float, seed: int, data_dir: Path | None) -> dict[str, Any]:
    """Score one trial; kind: "trial STEPS" of the network itself, or "quarter" of its width and images."""
    job = ready(name, seed, data_dir)
    way, _, asked = kind.partition(" ")
    batches, held_out = job.batches.apart()
    model, steps = job.model, int(asked or 0)
    recipe, count = job.recipe, len(job.train)
    if way == "quarter":
        quarter, _ = job.train.split(count - count // 4, stream(seed, "quarter"))
        small = dataclasses.replace(
            recipe, model=quarter_of(recipe.model), batch_size=min(recipe.batch_size, count // 8)
        )
        narrow = Job.with_images(quarter, job.test, small, job.machine)
        model, batches, steps = narrow.model, narrow.batches, recipe.epochs * len(narrow.batches)
    optimizer, objective = recipe.optimizer, recipe.objective
    trials = Trials(
        model, batches, held_out, optimizer, job.machine, objective, recipe.schedule, recipe.epochs, MIN_SHARE
    )
    start = time.perf_counter()
    score = trials(rate, steps).score
    return _row(name, kind, seed, rate, score=score, steps=steps, seconds=time.perf_counter() - start)


def quarter_of(model: Any) -> Any:
    match model:
        case CustomResNetSpec():
            return dataclasses.replace(model, width=model.width // 4)
        case FastNetSpec():
            return dataclasses.replace(model, widths=tuple(width // 4 for width in model.widths))
    raise LookupError


def _row(name: str, kind: str, seed: int, rate: float, **values: Any) -> dict[str, Any]:
    return {"setting": name, "kind": kind, "seed": seed, "rate": rate, **values}


Work = tuple[Any, ...]


def carry_out(work: Iterable[Work], keep: bool = True) -> None:
    """Do pieces of work in two processes of one thread each, and keep a row of each."""
    work = list(work)
    if not work:
        return
    machine = choose(precision="bf16")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(*piece) for piece in work]
        for future in as_completed(waiting):
            measure.record(__file__, machine, keep=keep, **future.result())


def done() -> dict[tuple[str, str, str, str], measure.Row]:
    return {
        (row["setting"], row["kind"], row["seed"], f"{float(row['rate'] or 'nan'):.6g}"): row
        for row in measure.read_rows(TABLE)
    }


def runs_wanted(names: Iterable[str], data_dir: Path | None) -> Iterator[Work]:
    """List the runs that are still to do: three seeds at each rate first, then more near the top."""
    there = done()
    for name in names:
        means = {}
        for rate in ALL[name].rates:
            keys = [(name, "run", str(seed), f"{rate:.6g}") for seed in range(SEEDS)]
            values = [float(there[key]["accuracy"]) for key in keys if key in there]
            means[rate] = sum(values) / len(values) if len(values) == SEEDS else math.nan
        complete = not any(map(math.isnan, means.values()))
        for rate, mean in means.items():
            near = complete and mean > max(means.values()) - NEAR_TOP
            for seed in range(MORE_SEEDS if near else SEEDS):
                if (name, "run", str(seed), f"{rate:.6g}") not in there:
                    yield one_run, name, rate, seed, data_dir


def shares_wanted(names: Iterable[str], data_dir: Path | None) -> Iterator[Work]:
    """List the runs at the best rate with another LRMIN that are still to do."""
    there = done()
    for name in names:
        accuracies: dict[float, list[float]] = {}
        for (setting, kind, _, _), row in there.items():
            if (setting, kind) == (name, "run"):
                accuracies.setdefault(float(row["rate"]), []).append(float(row["accuracy"]))
        if not accuracies:
            continue
        best = max(accuracies, key=lambda rate: sum(accuracies[rate]) / len(accuracies[rate]))
        for share in MIN_SHARES:
            for seed in range(SEEDS):
                if (name, f"run, LRMIN {share:g}", str(seed), f"{best:.6g}") not in there:
                    yield one_run, name, best, seed, data_dir, share


def total_steps(name: str) -> int:
    setting = ALL[name]
    return setting.recipe.epochs * (setting.images // setting.recipe.batch_size)


def trials_wanted(names: Iterable[str], data_dir: Path | None) -> Iterator[Work]:
    there = done()
    for name in names:
        kinds = [f"trial {steps}" for steps in TRIAL_STEPS if 2 * steps <= total_steps(name)]
        if not name.startswith("plain"):
            kinds.append("quarter")
        for kind in kinds:
            for rate in ALL[name].rates:
                for seed in range(SEEDS):
                    if (name, kind, str(seed), f"{rate:.6g}") not in there:
                        yield one_trial, name, kind, rate, seed, data_dir


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("step", choices=("runs", "trials", "shares"))
    options.add_argument("--data-dir", type=Path)
    options.add_argument("--apart", action="store_true", help="the settings that were kept apart")
    arguments = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    for setting in KEPT_APART if arguments.apart else SETTINGS:
        wanted = {"runs": runs_wanted, "trials": trials_wanted, "shares": shares_wanted}[arguments.step]
        for _ in range(2 if arguments.step == "runs" else 1):  # the second time, what was near the top
            carry_out(wanted([setting.name], arguments.data_dir))


if __name__ == "__main__":
    main()
