"""The one place where the rooms meet: prepare, find, train, evaluate, write."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firstlight.errors import InputError
from firstlight.insight.evaluation import evaluate
from firstlight.job import Job, resolve
from firstlight.models.blocks import count_parameters
from firstlight.recipe import Recipe
from firstlight.record import contents
from firstlight.record.folder import RunFolder
from firstlight.report.opened import Run
from firstlight.report.progress import Progress, duration
from firstlight.training.history import History
from firstlight.training.loop import Best, TrainState, fit
from firstlight.training.lr_finder import LRFinding
from firstlight.training.schedule import OneCycle


def train(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Do the whole job, from data to pictures, and return the finished run.

    out: a folder that does not exist yet; by default runs/NAME, with a number when taken.
    Raises InputError before anything is written, and Diverged where the loss stops being finite.
    """
    began = time.perf_counter()
    say = _silent if quiet else _say
    chosen = resolve(recipe, epochs=epochs, seed=seed, **settings)
    if out is not None and Path(out).exists():
        raise InputError(f"{out} exists already", "Choose another --out, or remove it.")
    job = Job.prepare(chosen, _path(data_dir), device, precision)
    say(
        f"{chosen.name}: {len(job.train):,} images to train on, {len(job.test):,} to test, "
        f"{count_parameters(job.model):,} parameters"
    )
    say(
        f"on {job.machine.hardware}; {job.machine.device.type}, {job.machine.precision}, "
        f"{job.machine.threads} threads"
    )
    say(job.forecast())
    folder = RunFolder.create(chosen.name, _path(out))
    try:
        finding = job.find_rates() if chosen.peak_lr is None or chosen.min_lr is None else None
        schedule = job.schedule(finding)
    except BaseException:
        folder.remove(".")  # nothing is trained yet, so nothing is worth keeping
        raise
    if finding is not None:
        say(str(finding))
        contents.write_finding(folder, finding)
    contents.write_recipe(folder, chosen)
    folder.write_json(contents.ENVIRONMENT, job.environment())
    folder.write_tensors(contents.SAMPLES, job.samples())
    state = TrainState.create(job.model, chosen.optimizer, job.machine, average_decay=chosen.average_decay)
    history, best, stopped = _fit(job, state, schedule, folder, quiet)
    if stopped and not len(history):
        folder.remove(".")
        say("stopped before the first epoch was finished; nothing is kept")
        raise KeyboardInterrupt
    model = _kept_weights(state, best, folder, history)
    folder.write_tensors(contents.MODEL, model.state_dict())
    summary = _summary(job, schedule, history) | {"interrupted": stopped}
    if not stopped:
        summary |= _judge(job, model, history, best, folder)
    summary["wall_seconds"] = time.perf_counter() - began
    folder.write_json(contents.SUMMARY, summary)
    if stopped:
        say(
            f"stopped after epoch {len(history)} of {chosen.epochs}; weights and history are in {folder.path}"
        )
        raise KeyboardInterrupt
    run = Run(folder)
    page = run.report()
    # Written again, because drawing is part of what the user waited for.
    summary["wall_seconds"] = time.perf_counter() - began
    folder.write_json(contents.SUMMARY, summary)
    for line in result_lines(summary, len(job.test)):
        say(line)
    for item in run.checklist():
        say(f"  {item}")
    say(f"pictures  {folder.path / contents.FIGURES}\nreport    {page}")
    return Run(folder)


def result_lines(summary: dict[str, Any], images: int) -> list[str]:
    """Say what came out, for a terminal."""
    low, high = summary["test_interval_95"]
    return [
        f"test accuracy {summary['test_accuracy']:.2%} without TTA (95 % interval {low:.2%} to {high:.2%}, "
        f"{images:,} images); {summary['test_accuracy_tta']:.2%} with TTA",
        f"training took {duration(summary['train_seconds'])}, everything together "
        f"{duration(summary['wall_seconds'])}",
    ]


def find_lr(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    **settings: Any,
) -> LRFinding:
    """Run the learning-rate finder alone, and write nothing."""
    chosen = resolve(recipe, epochs=epochs, seed=seed, **settings)
    return Job.prepare(chosen, _path(data_dir), device, precision).find_rates()


def _fit(
    job: Job, state: TrainState, schedule: OneCycle, folder: RunFolder, quiet: bool
) -> tuple[History, Best | None, bool]:
    """Train to the end or to Ctrl-C; after each epoch keep its weights and the history on disk."""
    recipe, history = job.recipe, History()
    best = Best() if recipe.best_on_validation else None
    progress = Progress(recipe.epochs * len(job.batches), recipe.epochs, quiet=quiet)
    try:
        for tick in fit(
            state, job.batches, schedule, epochs=recipe.epochs, machine=job.machine, objective=job.objective
        ):
            progress.update(tick)
            if tick.epoch is None:
                continue
            epoch = tick.epoch
            if job.validation is not None:
                seen = evaluate(state.trained, job.validation, job.machine)
                epoch = dataclasses.replace(
                    epoch, validation_loss=seen.loss, validation_accuracy=seen.accuracy
                )
                if best is not None:
                    best.offer(state.trained, epoch.epoch, seen.accuracy)
            folder.write_tensors(contents.snapshot(epoch.epoch), state.trained.state_dict())
            history = history.with_epoch(epoch)
            contents.write_history(folder, history)
            progress.epoch(epoch)
    except KeyboardInterrupt:
        return history, best, True
    finally:
        progress.close()
    return history, best, False


def _kept_weights(state: TrainState, best: Best | None, folder: RunFolder, history: History) -> nn.Module:
    """Return the network with the weights to keep: the best on validation, else the last epoch's."""
    model = state.trained
    kept = best.weights if best and best.weights else folder.read_tensors(contents.snapshot(len(history)))
    model.load_state_dict(kept)
    return model


def _judge(
    job: Job, model: nn.Module, history: History, best: Best | None, folder: RunFolder
) -> dict[str, Any]:
    """Score the test set with the kept weights and with each epoch's, and remove the snapshots."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    plain = evaluate(model, job.test, job.machine)
    mirrored = evaluate(model, job.test, job.machine, tta=True)
    curve = []
    for epoch in history:
        if epoch.epoch == len(history) and best is None:
            curve.append((plain.loss, plain.accuracy))
            continue
        model.load_state_dict(folder.read_tensors(contents.snapshot(epoch.epoch)))
        seen = evaluate(model, job.test, job.machine)
        curve.append((seen.loss, seen.accuracy))
    model.load_state_dict(kept)
    contents.write_history(folder, history.with_test(curve))
    folder.remove(contents.CHECKPOINTS)
    contents.write_evaluation(folder, plain, mirrored, job.test)
    return {
        "test_accuracy": plain.accuracy,
        "test_accuracy_tta": mirrored.accuracy,
        "test_interval_95": list(plain.interval),
        "test_loss": plain.loss,
        "kept_epoch": best.epoch if best else len(history),
    }


def _summary(job: Job, schedule: OneCycle, history: History) -> dict[str, Any]:
    last = history.epochs[-1]
    return {
        "recipe": job.recipe.name,
        "seed": job.recipe.seed,
        "epochs": len(history),
        "test_accuracy": None,
        "test_accuracy_tta": None,
        "test_interval_95": None,
        "train_accuracy": last.train_accuracy,
        "train_loss": last.train_loss,
        "validation_accuracy": last.validation_accuracy,
        "peak_lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "train_seconds": last.train_seconds,
        "parameters": count_parameters(job.model),
        "device": job.machine.device.type,
        "hardware": job.machine.hardware,
        "threads": job.machine.threads,
        "precision": job.machine.precision,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    pass
