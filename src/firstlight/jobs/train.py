"""The one place where the rooms meet: prepare, find, train, evaluate, write."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from firstlight.errors import InputError
from firstlight.insight.evaluation import evaluate
from firstlight.jobs.interruption import interruptible
from firstlight.jobs.job import Job, resolve, scored_epochs
from firstlight.jobs.progress import Progress, result_lines
from firstlight.jobs.resume import check_unchanged, failures_explained, folder_to_resume, is_finished, pinned
from firstlight.jobs.seeds import Seeds, train_seeds
from firstlight.machine.clock import Stopwatch
from firstlight.models.blocks import count_parameters
from firstlight.recipe import Recipe
from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.run import Run
from firstlight.training.history import Epoch, History
from firstlight.training.loop import TrainState, fit
from firstlight.training.lr_finder import LRFinding
from firstlight.training.schedule import OneCycle
from firstlight.training.state import Best, Captured, capture, restore


@overload
def train(recipe: str | Recipe, *, seeds: None = None, **options: Any) -> Run: ...
@overload
def train(recipe: str | Recipe, *, seeds: int | str, **options: Any) -> Seeds: ...
def train(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | str | None = None,
    seed: int | str | None = None,
    seeds: int | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    determinism: str = "draws",
    resume: bool | str = False,
    checkpoint_minutes: float = 5.0,
    quiet: bool = False,
    **settings: Any,
) -> Run | Seeds:
    """Do the whole job, from data to pictures, and return the finished run.

    out: a folder that does not exist yet; by default runs/NAME, with a number when taken.
    seeds: train so many, from the recipe's seed on, each a run of its own in `out`, and return `Seeds`.
    resume: go on from the last checkpoint of an unfinished run, in `out` or else the newest of this
        recipe, and end with the same bits as if it had never stopped; "auto" starts anew where there
        is none, and returns a finished run as it is.
    checkpoint_minutes: a checkpoint is kept at every epoch's end, and so often within one.

    Raises InputError before anything is written, Diverged where the loss stops being finite, and
    RunFailed where disk or memory give out.
    """
    began = time.perf_counter()
    say = _silent if quiet else _say
    chosen = resolve(recipe, epochs=epochs, seed=seed, **settings)
    if seeds is not None:
        same: dict[str, Any] = {
            "data_dir": data_dir,
            "determinism": determinism,
            "checkpoint_minutes": checkpoint_minutes,
            "quiet": quiet,
        }
        return train_seeds(
            chosen,
            seeds,
            out=_path(out),
            resume=resume,
            on=(device, precision),
            prepare=lambda *on: Job.prepare(chosen, _path(data_dir), on[0], on[1], determinism),
            one=lambda each, where, *on: train(
                each, out=where, device=on[0], precision=on[1], resume="auto", **same
            ),
            say=say,
        )
    folder = folder_to_resume(chosen, _path(out), resume)
    if folder is not None and is_finished(folder):
        say(f"{folder.path} is finished already")
        return Run(folder)
    if folder is None and out is not None and Path(out).exists():
        raise InputError(f"{out} exists already", "Choose another --out, remove it, or go on with --resume.")
    if folder is not None:
        device, precision = pinned(folder, device, precision)
    job = Job.prepare(chosen, _path(data_dir), device, precision, determinism)
    folder = check_unchanged(job, folder, say) if folder else RunFolder.create(chosen.name, _path(out))
    with failures_explained(folder, job):
        with folder.lock():
            summary = _work(job, folder, checkpoint_minutes, say, quiet, began)
        if summary["interrupted"]:
            raise KeyboardInterrupt
        folder.remove(CHECKPOINTS)
    for line in result_lines(summary, len(job.test)):
        say(line)
    run = Run(folder)
    for item in run.checklist():
        say(f"  {item}")
    say(f"pictures  {folder.path / record.FIGURES}\nreport    {folder.path / record.REPORT}")
    return run


def _work(
    job: Job, folder: RunFolder, minutes: float, say: Callable[[str], None], quiet: bool, began: float
) -> dict[str, Any]:
    """Find, train, evaluate, write and draw, from wherever the folder's last checkpoint stands."""
    recipe = job.recipe
    folder.sweep()
    checkpoints = Checkpoints(folder, say)
    state = job.state()
    best = Best() if recipe.best_on_validation else None
    history = History()
    found = checkpoints.last()
    if found is not None:
        tensors, facts = found
        restore(state, Captured(tensors, facts["state"]), best)
        history = History.from_json(facts["history"])
        say(f"going on after step {state.step:,} of {recipe.epochs * len(job.batches):,}")
    for line in job.describe(done=state.step):
        say(line)
    schedule = _schedule(job, folder, say)
    history, stopped = _fit(job, state, best, history, schedule, checkpoints, minutes, quiet)
    model = _kept_weights(state, best, checkpoints, history)
    if model is not None:
        folder.write_tensors(record.MODEL, model.state_dict())
    summary = _summary(job, schedule, history) | checkpoints.cost() | {"interrupted": stopped}
    if stopped or model is None:
        say(f"stopped after step {state.step:,}; --resume goes on from there in {folder.path}")
    else:
        summary |= _judge(job, model, history, best, checkpoints)
        summary["wall_seconds"] = time.perf_counter() - began
        record.write_summary(folder, summary)
        Run(folder).report()  # drawing is waited for too, so the clock is read again below
    summary["wall_seconds"] = time.perf_counter() - began
    record.write_summary(folder, summary)
    return summary


def _schedule(job: Job, folder: RunFolder, say: Callable[[str], None]) -> OneCycle:
    """Return the schedule; open rates are found first, or read where they were found before."""
    recipe, finding = job.recipe, record.read_finding(folder)
    if not folder.has(RECIPE):
        try:
            if finding is None and (recipe.peak_lr is None or recipe.min_lr is None):
                finding = job.find_rates()
            job.schedule(finding)  # or the rates do not fit together
        except BaseException:
            folder.remove(".")  # nothing is trained yet, so nothing is worth keeping
            raise
        record.write_start(folder, recipe, finding, job.environment(), job.samples())
    if finding is not None:
        say(str(finding))
    return job.schedule(finding)


def _fit(
    job: Job,
    state: TrainState,
    best: Best | None,
    history: History,
    schedule: OneCycle,
    checkpoints: Checkpoints,
    minutes: float,
    quiet: bool,
) -> tuple[History, bool]:
    """Train to the end, or to the first tick after Ctrl-C; keep checkpoints and history on disk."""
    recipe, saved = job.recipe, time.monotonic()
    progress = Progress(len(job.batches), job.costs, done=state.step, quiet=quiet)
    with interruptible() as asked, contextlib.closing(progress):
        for tick in fit(
            state, job.batches, schedule, epochs=recipe.epochs, machine=job.machine, objective=job.objective
        ):
            progress.update(tick)
            if tick.epoch is not None:
                epoch = _validated(tick.epoch, job, state, best)
                checkpoints.save_snapshot(epoch.epoch, state.trained.state_dict())
                history = history.with_epoch(epoch)
                record.write_history(checkpoints.folder, history)
                progress.epoch(epoch)
            if tick.epoch is not None or asked() or time.monotonic() - saved >= 60 * minutes:
                captured = capture(state, best)
                facts = {"state": captured.facts, "history": history.to_json()}
                checkpoints.save(state.step, captured.tensors, facts)
                saved = time.monotonic()
            if asked() and tick.step < tick.steps:
                return history, True
    return history, False


def _validated(epoch: Epoch, job: Job, state: TrainState, best: Best | None) -> Epoch:
    """Return the epoch with its scores on validation images, where there are some."""
    if job.validation is None:
        return epoch
    seen = evaluate(state.trained, job.validation, job.machine)
    if best is not None:
        best.offer(state.trained, epoch.epoch, seen.accuracy)
    return dataclasses.replace(epoch, validation_loss=seen.loss, validation_accuracy=seen.accuracy)


def _kept_weights(
    state: TrainState, best: Best | None, checkpoints: Checkpoints, history: History
) -> nn.Module | None:
    """Return the network with the weights to keep: the best on validation, else the last whole epoch's."""
    kept = best.weights if best and best.weights else checkpoints.snapshot(len(history))
    if kept is None:
        return None
    model = state.trained
    model.load_state_dict(kept)
    return model


def _judge(
    job: Job, model: nn.Module, history: History, best: Best | None, checkpoints: Checkpoints
) -> dict[str, Any]:
    """Score the test set with the kept weights, and with each epoch's for the curve; write both."""
    folder = checkpoints.folder
    plain = evaluate(model, job.test, job.machine)
    watch = Stopwatch(job.machine)
    watch.start()
    mirrored = evaluate(model, job.test, job.machine, tta=True, shift=job.recipe.tta_shift)
    watch.pause()
    record.write_evaluation(folder, plain, mirrored, job.test)
    curve: list[tuple[float, float] | None] = []
    scored = scored_epochs(len(history))
    for epoch in history:
        if epoch.epoch == len(history) and best is None:
            curve.append((plain.loss, plain.accuracy))
            continue
        weights = checkpoints.snapshot(epoch.epoch) if epoch.epoch in scored else None
        if weights is None:  # or damaged while the run stood still
            curve.append(None)
            continue
        model.load_state_dict(weights)
        seen = evaluate(model, job.test, job.machine)
        curve.append((seen.loss, seen.accuracy))
    record.write_history(folder, history.with_test(curve))
    return {
        "test_accuracy": plain.accuracy,
        "test_accuracy_tta": mirrored.accuracy,
        "tta_seconds": watch.seconds,
        "test_interval_95": list(plain.interval),
        "test_loss": plain.loss,
        "kept_epoch": best.epoch if best else len(history),
    }


def find_lr(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    epochs: int | str | None = None,
    seed: int | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    **settings: Any,
) -> LRFinding:
    """Run the learning-rate finder alone, and write nothing."""
    chosen = resolve(recipe, epochs=epochs, seed=seed, **settings)
    return Job.prepare(chosen, _path(data_dir), device, precision).find_rates()


def _summary(job: Job, schedule: OneCycle, history: History) -> dict[str, Any]:
    last = history.epochs[-1] if len(history) else None
    return {
        "recipe": job.recipe.name,
        "seed": job.recipe.seed,
        "epochs": len(history),
        "test_accuracy": None,
        "test_accuracy_tta": None,
        "test_interval_95": None,
        "train_accuracy": last and last.train_accuracy,
        "train_loss": last and last.train_loss,
        "validation_accuracy": last and last.validation_accuracy,
        "peak_lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "train_seconds": last and last.train_seconds,
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
