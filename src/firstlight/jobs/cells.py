"""Cells: runs that differ in setting or seed alone, each in a folder of its own below that of the sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import InputError, RunFailed
from firstlight.jobs.failures import failures_explained
from firstlight.jobs.job import Job
from firstlight.jobs.resume import begun_record, pinned
from firstlight.jobs.seeds import Seeds
from firstlight.jobs.sweep_record import SweepRecord
from firstlight.machine.clock import duration
from firstlight.machine.ranks import started
from firstlight.page.sweep_page import write_sweep_page
from firstlight.recipe import Recipe
from firstlight.record.run_folder import RunFolder
from firstlight.record.sweep import SWEEP, Cell, Sweep, fixed, words
from firstlight.run import Run

Train = Callable[..., Run]
"""`train` for a single recipe."""
Log = Callable[[str], None]
Failure = InputError | RunFailed


@dataclass(frozen=True)
class Plan:
    """One run to do. path: its folder. title: what the log calls it."""

    recipe: Recipe
    path: Path
    title: str


Ended = Generator[tuple[Plan, Failure | None]]
Engine = Callable[[Sequence[Plan], Train, Mapping[str, Any], Log], Ended]
"""Does all plans and yields each when it ends, with None or why it came to no end."""


def one_after_another(plans: Sequence[Plan], one: Train, options: Mapping[str, Any], log: Log) -> Ended:
    """Do all plans in this process; options: of `train`."""
    for plan in plans:
        log(f"\n{plan.title}")
        try:
            one(plan.recipe, out=plan.path, resume="auto", **options)
        except (InputError, RunFailed) as error:
            yield plan, error
        else:
            yield plan, None


def seeds_from(first: int, count: int) -> range:
    """Return so many seeds; raises InputError where `count` is no number of them."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"seeds takes a whole number of at least 1, not {count!r}", "For example: --seeds 5")
    return range(first, first + count)


def absolute(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths: a worker of a cluster works in another folder."""
    paths = {
        each.key: str(Path(each.value).expanduser().absolute())
        for each in recipe.settings()
        if each.value and Path in typing.get_args(each.hint)
    }
    return recipe.replace(**paths)


def cost(job: Job, left: int) -> str:
    """Say what so many runs like this one take here."""
    each = sum(job.estimate(job.step_seconds()).values())
    return f"about {duration(left * each)} here" + (f", {left} times {duration(each)}" if left > 1 else "")


def train_cells(
    base: Recipe,
    settings: Sequence[tuple[Recipe, dict[str, str]]],
    seeds: range,
    one: Train,
    engine: Engine,
    options: Mapping[str, Any],
    *,
    name: str,
    out: Path | None,
    resume: bool | str,
    log: Log,
    is_chosen_here: bool = True,
    stops_at_failure: bool = False,
) -> Sweep:
    """Train every setting under every seed, each a run of its own below `out`, and write the sweep's page.

    base: the recipe before its settings; `settings`: each recipe with the values that make it. one: `train`
    for a single recipe; options: of it. name: of the folder where `out` is none. resume: see `begun_record`.
    is_chosen_here: whether device, precision and cost of all cells are those of this process.
    stops_at_failure: raise what ended a cell; otherwise it is a row with its reason.
    """
    if started() > 1:
        hint = "Give each GPU a run of its own; see docs/scaling.md."
        raise InputError(f"several runs take one process, not {started()}", hint)
    values = [row for _, row in settings]
    begun = begun_record(
        SweepRecord, base, out, resume, name=name, same=lambda record: record.is_of(values, seeds)
    )
    if begun is not None and begun.is_begun:
        begun.check_same(values, seeds)
    device, precision = pinned(begun, options["device"], options["precision"])
    job = None
    cells = [
        (
            one_recipe,
            Cell(row, seed, f"seed-{seed}" if len(settings) == 1 else f"setting-{number}/seed-{seed}"),
        )
        for number, (one_recipe, row) in enumerate(settings, 1)
        for seed in seeds
    ]
    if is_chosen_here and (begun is None or any(_read(begun.path, cell) is None for _, cell in cells)):
        # What "auto" comes to here is that of all cells. Missing data stops it before a folder is made.
        job = Job.prepare(settings[0][0], options["data_dir"], device, precision, options["determinism"])
        device, precision = job.machine.device.type, job.machine.precision
    record = begun or SweepRecord(RunFolder.create(name, out))
    header = {"recipe": base.to_json(), "settings": values, "seeds": list(seeds)}
    header |= {"device": device, "precision": precision}
    with record.folder.lock():
        record.folder.sweep()
        training = _Training(record, header, cells, log, stops_at_failure)
        training.write()
        left = training.plans()
        if not left:
            log(f"{record.path} is finished already")
        if job is not None:
            with failures_explained(record.path, job):
                if engine is one_after_another:
                    training.say_cost(job, len(left), base.name)
            job = None  # its images and network would lie beside those of every cell
        result = training.go(left, one, engine, {**options, "device": device, "precision": precision})
        page = write_sweep_page(result, base.name)
    log(f"sweep     {result.path / SWEEP}\npage      {page}")
    return result


class _Training:
    """What is known of all cells while they are trained."""

    def __init__(
        self,
        record: SweepRecord,
        header: Mapping[str, Any],
        cells: Sequence[tuple[Recipe, Cell]],
        log: Log,
        stops_at_failure: bool,
    ) -> None:
        self.record, self.header, self.log, self.stops_at_failure = record, header, log, stops_at_failure
        self.cells = {record.path / cell.folder: (recipe, cell) for recipe, cell in cells}
        self.known = {path: _read(record.path, cell) for path, (_, cell) in self.cells.items()}
        self.is_one = len(header["settings"]) == 1

    def plans(self) -> list[Plan]:
        """Return what is not finished."""
        count, shared = len(self.cells), fixed(self.header["settings"])

        def title(number: int, cell: Cell) -> str:
            if self.is_one:
                return f"seed {cell.seed}, {number} of {count}"
            setting = words({key: value for key, value in cell.values.items() if key not in shared})
            return f"{setting}, seed {cell.seed} ({number} of {count})"

        return [
            Plan(dataclasses.replace(recipe, seed=cell.seed), path, title(number, cell))
            for number, (path, (recipe, cell)) in enumerate(self.cells.items(), 1)
            if self.known[path] is None
        ]

    def say_cost(self, job: Job, left: int, name: str) -> None:
        rest = "" if left == len(self.cells) else f" for the {left} that are left"
        self.log(f"{self._count(len(self.cells))} of {name}: {cost(job, left)}{rest}")

    def _count(self, count: int) -> str:
        return f"{count} {'seed' if self.is_one else 'cell'}{'' if count == 1 else 's'}"

    def done(self) -> str:
        count = sum(cell is not None and not cell.failed for cell in self.known.values())
        return f"{count} of {self._count(len(self.cells))} are finished"

    def write(self, *, finished: bool = False) -> Sweep:
        """Write what is known so far."""
        result = Sweep(self.record.path, tuple(cell for cell in self.known.values() if cell))
        rows = [dataclasses.asdict(cell) for cell in result.cells]
        best = result.best if finished and not self.is_one else None
        values = {**self.header, "finished": finished, "best_by_validation": best, "cells": rows}
        if finished and self.is_one and not any(cell.failed for cell in result.cells):
            values |= Seeds.of(result).to_json()
        self.record.folder.write_json(SWEEP, values)
        return result

    def go(self, plans: Sequence[Plan], one: Train, engine: Engine, options: Mapping[str, Any]) -> Sweep:
        """Train what is not finished, and write after each cell what is known."""
        how = "the same command with --resume" if self.stops_at_failure else "the same command"
        with (
            stops_explained(self.record, self.done, how, self.log),
            contextlib.closing(engine(plans, one, options, self.log)) as ended,
        ):
            for plan, failure in ended:
                cell = self.cells[plan.path][1]
                if failure is not None and not self.stops_at_failure:
                    self.log(f"failed: {failure.message}")
                self.known[plan.path] = (
                    _read(self.record.path, cell)
                    if failure is None
                    else dataclasses.replace(cell, failed=failure.message)
                )
                self.write()
                if failure is not None and self.stops_at_failure:
                    raise failure
            result = self.write(finished=True)
        is_whole = self.is_one and not any(cell.failed for cell in result.cells)
        self.log(f"\n{Seeds.of(result) if is_whole else result}")
        return result


def _read(path: Path, cell: Cell) -> Cell | None:
    """Return the cell with the numbers of its run, None where that is not finished."""
    run = Run(RunFolder(path / cell.folder))
    if not run.is_finished:
        return None
    names = ("validation_accuracy", "test_accuracy", "test_accuracy_tta", "train_seconds", "threads")
    values = {name: getattr(run.summary, name) for name in (*names, "hardware")}
    return dataclasses.replace(cell, **values)


@contextlib.contextmanager
def stops_explained(record: SweepRecord, done: Callable[[], str], go_on: str, log: Log) -> Iterator[None]:
    """Say how far all runs are where one of them is stopped or fails, or the disk is full.

    done: tells how many are, such as "2 of 3 seeds are finished". go_on: what continues them.
    """
    try:
        yield
    except InputError:
        if not any(record.path.glob("*/")):
            record.folder.remove(".")  # nothing was trained, so nothing is worth keeping
        raise
    except (KeyboardInterrupt, RunFailed):
        log(f"{done()}; {go_on} goes on in {record.path}")
        raise
    except OSError as error:
        message = f"cannot write {error.filename or record.path}: {error.strerror or error}"
        raise RunFailed(message, f"Make room, then {go_on} goes on.") from error
