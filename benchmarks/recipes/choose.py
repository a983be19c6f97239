"""Try changes to a recipe on images held out of training; the test set is not read.

    python -m benchmarks.recipes.choose cifar10.fast --data-dir DIR [--seeds 0 1] [--held-out 10000]
        [--try "peak_lr=0.3"] [--try "batch_size=500 peak_lr=0.1"] [--record]

Every variant is trained from each seed on the same 50,000 - N training images, in the same order and with
the same draws where the variant leaves them alone, and scored on the other N. The recipe as it stands comes
first. Label smoothing leaves probabilities too low, so recipes are best told apart by `calibrated_loss`: the
cross-entropy with test-time augmentation at the temperature that makes it least.
With --record each run becomes a row of choose.csv, which LOG.md refers to.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.measure import record
from firstlight.insight.evaluation import Evaluation, evaluate
from firstlight.jobs.job import Job
from firstlight.machine.machine import choose
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.training.loop import fit

AS_IT_STANDS = "as it stands"
Change = Callable[[Recipe], Recipe]


def calibrated_loss(evaluation: Evaluation) -> float:
    """Return the mean cross-entropy at the best of fifty temperatures from 0.3 to 1.5."""
    logits = evaluation.probabilities.double().clamp_min(1e-12).log()
    temperatures = torch.linspace(0.3, 1.5, 50).tolist()
    return min(float(F.cross_entropy(logits / t, evaluation.labels)) for t in temperatures)


def score(job: Job) -> dict[str, float]:
    """Train, and return accuracies on the held-out images and the seconds of training."""
    recipe, machine = job.recipe, job.machine
    assert job.validation is not None
    state = job.state()
    for tick in fit(
        state, job.batches, job.schedule(), epochs=recipe.epochs, machine=machine, objective=recipe.objective
    ):
        if tick.epoch is not None:
            print(f"  {tick.epoch}", flush=True)
    plain = evaluate(state.trained, job.validation, machine)
    augmented = evaluate(state.trained, job.validation, machine, views=recipe.views)
    return {
        "accuracy": plain.accuracy,
        "accuracy_tta": augmented.accuracy,
        "loss": plain.loss,
        "loss_tta": augmented.loss,
        "calibrated_loss": calibrated_loss(augmented),
        "train_seconds": state.seconds,
    }


def compare(
    chosen: str | Recipe,
    changes: Mapping[str, Change],
    arguments: argparse.Namespace,
    script: str,
    *,
    before: Callable[[str, Job], None] = lambda change, job: None,
) -> None:
    """Train and score a recipe once for each seed and change; print means, and record rows if asked.

    before: called with the name of the change and the job before it is trained.
    """
    machine = choose()
    base = resolve(chosen, validation=arguments.held_out)
    train, test = base.data.load(arguments.data_dir)
    nothing = test.subset(torch.arange(0))  # so that nothing here can look at it
    scores: dict[str, list[dict[str, float]]] = {change: [] for change in changes}
    for seed in arguments.seeds:
        for change, changed in changes.items():
            job = Job.with_images(train, nothing, changed(dataclasses.replace(base, seed=seed)), machine)
            before(change, job)
            figures = score(job)
            scores[change].append(figures)
            row = {"recipe": base.name, "change": change, "seed": seed, "held_out": arguments.held_out}
            row |= {key: round(value, 5) for key, value in figures.items()}
            record(script, machine, keep=arguments.record, **row)
    print("\n| change | n | accuracy | with TTA | calibrated | seconds |")
    print("| --- " * 6 + "|")
    for change, runs in scores.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        print(
            f"| {change or AS_IT_STANDS} | {len(runs)} | {mean['accuracy']:.2%} "
            f"| {mean['accuracy_tta']:.2%} | {mean['calibrated_loss']:.4f} | {mean['train_seconds']:.0f} |"
        )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every comparison takes."""
    options = measure.parser(doc)
    options.add_argument("--data-dir", type=Path, help="where the data is; the cache otherwise")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--held-out", type=int, default=10_000)
    return options


def main() -> None:
    options = parser(__doc__)
    options.add_argument("recipe")
    options.add_argument("--try", dest="variants", action="append", default=[], metavar="SETTINGS")
    arguments = options.parse_args()
    changes = {variant: _settings(variant) for variant in ("", *arguments.variants)}
    compare(arguments.recipe, changes, arguments, __file__)


def _settings(text: str) -> Change:
    settings = dict(word.split("=", 1) for word in text.split())
    return lambda recipe: resolve(recipe, text=settings)


if __name__ == "__main__":
    main()
