"""`train`: the whole job, from data to pictures, read from top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

from firstlight.errors import Diverged, InputError, printable
from firstlight.jobs.cells import absolute, one_after_another, seeds_from, train_cells
from firstlight.jobs.failures import failures_explained, interruptible, removed_unless_begun, terminable
from firstlight.jobs.job import Job
from firstlight.jobs.judge import judge, kept_network, numbers, validated
from firstlight.jobs.progress import Progress, result_lines, say, silent
from firstlight.jobs.resume import begun_blocks, begun_record, check_unchanged, pinned
from firstlight.jobs.seeds import Seeds
from firstlight.jobs.transfer import train_head
from firstlight.machine.ranks import Ranks, is_follower, join
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.recipes.assignment import checklist
from firstlight.record.record import FIGURES, MOST_HALVINGS, REPORT, Record
from firstlight.record.run_folder import NoFolder, RunFolder
from firstlight.run import Run
from firstlight.training.graph import choose_step
from firstlight.training.loop import fit
from firstlight.training.lr_finder import LRFinding
from firstlight.training.state import TrainState, share


@overload
def train(recipe: str | Recipe, *, seeds: None = None, **options: Any) -> Run: ...
@overload
def train(recipe: str | Recipe, *, seeds: int, **options: Any) -> Seeds: ...
def train(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    seeds: int | None = None,
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
    epochs: the schedule shrinks or stretches in proportion.
    seeds: train so many, from the recipe's seed on, each a run of its own in `out`, and return `Seeds`.
    resume: go on from the last checkpoint of an unfinished run, in `out` or else the newest of this
        recipe, and end with the same bits as if it had never stopped; "auto" starts anew where there
        is none, and returns a finished run as it is.
    checkpoint_minutes: the checkpoint interval within an epoch; at its end there is always one.
    settings: as `Recipe.replace` takes them, such as peak_lr=0.4.

    Raises InputError before anything is written, Diverged, and RunFailed where disk or memory give out.
    """
    start, quiet = time.perf_counter(), quiet or is_follower()
    log = silent if quiet else say
    recipe = resolve(recipe, data_dir=data_dir, epochs=epochs, seed=seed, log=log, **settings)
    if seeds is not None:
        options: dict[str, Any] = {"data_dir": None if data_dir is None else Path(data_dir)}
        options |= {"device": device, "precision": precision, "determinism": determinism}
        options |= {"checkpoint_minutes": checkpoint_minutes, "quiet": quiet}
        base = absolute(recipe)
        return Seeds.of(
            train_cells(
                base,
                [(base, {})],
                seeds_from(base.seed, seeds),
                train,
                one_after_another,
                options,
                name=base.name,
                out=None if out is None else Path(out),
                resume=resume,
                log=log,
                stops_at_failure=True,
            )
        )
    place, data = (None if path is None else Path(path) for path in (out, data_dir))
    with join(device) as ranks:
        choices = (place, data, device, precision, determinism, resume, checkpoint_minutes)
        return _train(ranks, recipe, *choices, quiet, log, start)


def _train(
    ranks: Ranks,
    recipe: Recipe,
    place: Path | None,
    data: Path | None,
    device: str,
    precision: str,
    determinism: str,
    resume: bool | str,
    checkpoint_minutes: float,
    quiet: bool,
    log: Callable[[str], None],
    start: float,
) -> Run:
    """Train in one process, or as one of several: the first writes, and the others hold `NoFolder`."""
    begun = ranks.together(lambda: begun_record(Record, recipe, place, resume) if ranks.first else None)
    if ranks.broadcast(begun is not None and begun.is_finished):
        folder = NoFolder() if begun is None else begun.folder
        log(f"{folder.path} is finished already")
        return Run(folder)
    device, precision = ranks.broadcast(ranks.together(lambda: pinned(begun, device, precision)))
    job = ranks.together(lambda: Job.prepare(recipe, data, device, precision, determinism))
    ranks.together(lambda: check_unchanged(begun, job.environment(), log))
    job.batches.blocks = ranks.broadcast(begun_blocks(begun, job.batches.blocks))
    untrained = copy.deepcopy(job.model.state_dict()) if recipe.on_divergence == "halve" else {}
    run = ranks.together(lambda: Run(_folder(begun, recipe, place) if ranks.first else NoFolder()))
    with failures_explained(run.path, job), run.folder.lock(), terminable(), removed_unless_begun(run):
        if recipe.head is not None:
            if not ranks.alone:
                raise InputError(f"{recipe.name} is fitted in one process", "Start it without torchrun.")
            return train_head(job, run, start, log, quiet)
        state, steps = job.state(), recipe.epochs * len(job.batches)
        lines = ranks.together(lambda: run.restore(state, steps))
        share(state, ranks)
        run.history, run.summary = ranks.broadcast((run.history, run.summary))
        if ranks.first:
            for line in [*lines, *job.describe(done=state.step)]:
                log(line)
        finding = ranks.together(
            lambda: (run.finding if run.is_begun else _begin(job, run, log)) if ranks.first else None
        )
        run.finding = finding = ranks.broadcast(finding)
        if finding is not None:
            log(str(finding))
        while True:
            try:
                _fit(job, state, run, finding, checkpoint_minutes, quiet)
                break
            except Diverged as error:
                if recipe.on_divergence != "halve" or run.halvings == MOST_HALVINGS:
                    raise
                log(f"{error.message}; once more from the start, at half the rates")
                run.halve()
                job.model.load_state_dict(untrained)
                state = job.state()
        model = kept_network(state, run, ranks.broadcast)
        if state.step < steps or model is None:
            run.write_summary(numbers(job, run, state))
            log(f"stopped after step {state.step:,}; --resume goes on from there in {run.path}")
            raise KeyboardInterrupt
        summary = judge(job, model, state, run)
        run.write_summary(dataclasses.replace(summary, wall_seconds=time.perf_counter() - start))
        if not ranks.first:
            return run
        run.report()  # shows the seconds until now; drawing is waited for too, so they are written again
        run.write_summary(dataclasses.replace(summary, wall_seconds=time.perf_counter() - start))
        run.remove_checkpoints()
    for line in result_lines(run.summary, len(job.test), len(recipe.views)):
        log(line)
    for check in checklist(recipe, run.data, run.history, run.rates):
        log(f"  {check}")
    log(f"pictures  {printable(run.path / FIGURES)}\nreport    {printable(run.path / REPORT)}")
    return run


def _folder(begun: Record | None, recipe: Recipe, place: Path | None) -> RunFolder:
    return (begun or Record.create(recipe.name, place)).folder


def _begin(job: Job, record: Record, log: Callable[[str], None]) -> LRFinding | None:
    """Find the rates that the recipe leaves open, and make the folder a run."""
    schedule = job.recipe.schedule
    finding = job.find_rates(log) if schedule.peak_lr is None or schedule.min_lr is None else None
    job.schedule(finding)  # or the rates do not fit together
    record.begin(job.recipe, finding, job.environment(), job.samples())
    return finding


def _fit(
    job: Job, state: TrainState, record: Record, finding: LRFinding | None, minutes: float, quiet: bool
) -> None:
    """Train to the end, or to the first tick after Ctrl-C, and write what each tick leaves."""
    saved, recipe, ranks = time.monotonic(), job.recipe, job.machine.ranks
    step = choose_step(state, job.machine)
    with (
        interruptible(0.0 if ranks.alone else 5.0) as stopped,
        Progress(len(job.batches), job.costs, done=state.step, quiet=quiet) as bar,
    ):
        for tick in fit(
            state,
            job.batches,
            job.schedule(finding, record.halvings),
            epochs=recipe.epochs,
            machine=job.machine,
            objective=recipe.objective,
            step=step,
            batch_norm=recipe.batch_norm,
        ):
            if tick.epoch is not None:
                tick = dataclasses.replace(tick, epoch=validated(tick.epoch, job, state))
            stopping = any(ranks.gather(stopped()))
            due = stopping or time.monotonic() - saved >= 60 * minutes
            ranks.together(functools.partial(record.keep, tick, state, checkpoint=due))
            bar.update(tick)
            if due or tick.epoch is not None:
                saved = time.monotonic()
            stopping = stopping or (ranks.alone and stopped())
            if stopping and tick.step < tick.steps:
                return
