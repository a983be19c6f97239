"""Cross-fitting: every training image is judged by a network that was not trained on it."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import Views, evaluate
from firstlight.insight.suspects import suspects as rank_labels
from firstlight.jobs.failures import failures_explained
from firstlight.jobs.job import Job
from firstlight.jobs.progress import Progress, say
from firstlight.machine.clock import duration
from firstlight.machine.machine import Machine, choose
from firstlight.machine.streams import stream
from firstlight.recipe import Recipe
from firstlight.record.suspects import TrainingSuspects
from firstlight.run import Run, open_run
from firstlight.training.graph import choose_step
from firstlight.training.loop import fit


def suspects(
    run: str | Path | Run,
    *,
    data_dir: str | Path | None = None,
    folds: int = 4,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
) -> TrainingSuspects:
    """Find the label errors of a finished run's training set, and keep them in its folder.

    The recipe is trained once for each fold, on all other folds, with the rates of the run; it says
    beforehand how long that takes here. Images that the run held out for validation are judged as well.
    Nothing is written before the end. A run of frozen features has its label errors already.

    Raises InputError where the run is not finished or the data is not what it was trained on, and
    RunFailed where disk or memory give out.
    """
    run = open_run(run)
    run.folder.require_writable()
    if run.recipe.head is not None and run.suspects is not None:
        return run.suspects  # cross-fitting is cheap on features, so training has done it
    recipe, machine = _with_rates(run), choose(device, precision)
    images, test = run.recipe.data.load(None if data_dir is None else Path(data_dir))
    job = Job.with_images(images, test, run.recipe, machine)
    data = run.environment.get("data")
    if not isinstance(data, dict) or data.get("train_sha256") != job.train.digest:
        hint = "Give the data that the run was trained on with --data-dir."
        raise InputError(f"the training images are not those of {run.path}", hint)
    _check_folds(folds, len(images), recipe.batch_size)
    room, smaller = (
        "Make room, then try again.",
        "Train the run again with --set batch_size={}, which fits here.",
    )
    with failures_explained(run.path, job, room=room, smaller=smaller), run.folder.lock():
        if not quiet:
            say(_description(job, recipe, images, folds))
        probabilities = out_of_sample(recipe, images, machine, folds=folds, quiet=quiet)
        ranking = rank_labels(images.labels, probabilities)
        run.folder.sweep()
        return TrainingSuspects.write(run.folder, ranking, probabilities, images)


def _with_rates(run: Run) -> Recipe:
    """Return the recipe of a finished run with the rates that it used, to be trained on every image given."""
    peak_lr, min_lr = run.summary.peak_lr, run.summary.min_lr
    if run.summary.test_accuracy is None or peak_lr is None or min_lr is None:
        raise InputError(f"{run.path} is not finished", "Go on with `firstlight train … --resume` first.")
    return run.recipe.replace(peak_lr=peak_lr, min_lr=min_lr, validation=0, best_on_validation=False)


def out_of_sample(
    recipe: Recipe, images: ImageSet, machine: Machine, *, folds: int = 4, quiet: bool = False
) -> Tensor:
    """Return probabilities, fp32, N×K, each row from a network that was trained without its image.

    recipe: holds both rates and no validation images. Where it mirrors its training images, each image is
    judged together with its mirror image.
    """
    _check_folds(folds, len(images), recipe.batch_size)
    fold = fold_numbers(images.labels, folds, recipe.seed)
    probabilities = torch.empty(len(images), len(images.classes))
    for number in range(folds):
        start = time.perf_counter()
        inside, outside = (torch.nonzero(part).flatten() for part in (fold == number, fold != number))
        job = Job.with_images(images.subset(outside), images.subset(inside), recipe, machine)
        evaluation = evaluate(trained(job, quiet), job.test, machine, views=_views(recipe))
        probabilities[inside] = evaluation.probabilities
        if not quiet:
            say(
                f"fold {number + 1}/{folds}  {evaluation.right:,} of {len(inside):,} labels as predicted "
                f"({evaluation.accuracy:.2%})  {duration(time.perf_counter() - start)}"
            )
    return probabilities


def fold_numbers(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each image, int64, N; every fold holds as many of each class as any other, ± 1."""
    order = torch.randperm(len(labels), generator=stream(seed, "folds"))
    order = order[labels[order].argsort(stable=True)]  # each class together, in random order
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(len(order)) % folds
    return numbers


def _check_folds(folds: int, images: int, batch_size: int) -> None:
    if not 2 <= folds <= images:
        raise InputError(f"cannot make {folds} folds of {images:,} images", "Use --folds 4, say.")
    rest = images - -(-images // folds)
    if rest < batch_size:
        message = f"{folds} folds leave {rest:,} images to train on, fewer than a batch of {batch_size}"
        raise InputError(message, "Use more --folds, or train the run with a smaller batch_size.")


def _views(recipe: Recipe) -> Views:
    return Views(mirror=recipe.views.mirror)


def trained(job: Job, quiet: bool = False) -> torch.nn.Module:
    """Train a job's network from its beginning to its end; nothing is kept on disk."""
    state, machine, objective = job.state(), job.machine, job.recipe.objective
    step = choose_step(state, machine)
    schedule, epochs = job.schedule(), job.recipe.epochs
    ticks = fit(state, job.batches, schedule, epochs=epochs, machine=machine, objective=objective, step=step)
    with Progress(len(job.batches), job.costs, quiet=quiet, lines=False) as progress:
        for tick in ticks:
            progress.update(tick)
    return state.trained


def _description(job: Job, recipe: Recipe, images: ImageSet, folds: int) -> str:
    """Say what will be trained, and how long it will take here."""
    step, machine = job.step_seconds(), job.machine
    rest = len(images) - len(images) // folds
    training = folds * recipe.epochs * (rest // recipe.batch_size) * step
    passes = len(images) * len(_views(recipe))
    judging = passes / recipe.batch_size * step / 3  # a forward pass is a third of a step
    return (
        f"{recipe.name}: {len(images):,} labels to judge; {folds} networks, each trained for {recipe.epochs} "
        f"epochs on about {rest:,} images and asked about the others\n"
        f"on {machine.hardware}; {machine.device.type}, {machine.precision}, {machine.threads} threads\n"
        f"about {duration(training + judging)} here "
        f"(training {duration(training)}, judging {duration(judging)})"
    )
