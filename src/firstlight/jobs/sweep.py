"""`sweep`: a grid of settings × seeds, each cell an ordinary run; the best by validation, never by test."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from firstlight.errors import InputError
from firstlight.jobs.cells import (
    CellsRecord,
    Engine,
    Log,
    Plan,
    one_after_another,
    seeds_from,
    stops_explained,
)
from firstlight.jobs.cluster import OnRay
from firstlight.jobs.failures import terminable
from firstlight.jobs.grid import Axes, grid
from firstlight.jobs.job import Job
from firstlight.jobs.progress import say, silent
from firstlight.jobs.resume import pinned
from firstlight.jobs.train import train
from firstlight.page.sweep_page import write_sweep_page
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.record.run_folder import ROOT, RunFolder
from firstlight.record.sweep import SWEEP, Cell, Sweep, fixed, words
from firstlight.run import Run


def sweep(
    recipe: str | Recipe,
    axes: Axes,
    *,
    seeds: int = 1,
    random: int | None = None,
    on: str = "local",
    threads: int | None = None,
    gpus: float = 0,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    determinism: str = "draws",
    checkpoint_minutes: float = 5.0,
    quiet: bool = False,
) -> Sweep:
    """Train every setting of a grid under every seed, each a run folder of its own.

    axes: the values of each setting, such as {"peak_lr": [0.2, 0.4]}, or as text. seeds: so many, from the
        recipe's on. random: take so many settings of the grid, drawn by the first seed.
    on: "local" trains one after the other; "ray" as many at a time as the Ray cluster has room for.
    threads: of each cell; on Ray also the cores that it asks for, 1 by default. gpus: that it asks for there.
    out: where a sweep with the same settings lies, it is finished; by default runs/NAME-sweep.

    A cell that fails is a row with its reason. Raises InputError where a setting is none.
    """
    log = silent if quiet else say
    engine, device, threads = _engine(on, threads, gpus, device)
    data = None if data_dir is None else Path(data_dir).expanduser().absolute()
    given: dict[str, Any] = {"data_dir": data, "epochs": epochs, "seed": seed}
    base = absolute(resolve(recipe, log=log, **given))
    settings = grid(axes, random, base.seed)
    chosen = [absolute(resolve(recipe, text=row, **given)) for row in settings]
    if len(chosen) > 1 and not all(one.validation for one in chosen):
        message = "no validation images to choose a setting by; the test set chooses nothing"
        raise InputError(message, "Set validation=1000, say.")
    every = seeds_from(base.seed, seeds)
    header = {"recipe": base.to_json(), "settings": settings, "seeds": list(every)}
    record = _SweepRecord.matching(header, base.name, None if out is None else Path(out))
    device, precision = pinned(record, device, precision)
    options = {"data_dir": data, "determinism": determinism, "checkpoint_minutes": checkpoint_minutes}
    with _threads(threads), terminable():
        if gpus == 0:
            # What "auto" comes to here is that of all cells. Missing data stops it before a folder is made.
            machine = Job.prepare(chosen[0], data, device, precision, determinism).machine
            device, precision = machine.device.type, machine.precision
        if record is None:
            record = _SweepRecord(RunFolder.create(f"{base.name}-sweep", None if out is None else Path(out)))
        header |= {"device": device, "precision": precision}
        options |= {"device": device, "precision": precision, "quiet": quiet}
        cells = {
            record.path.absolute() / folder: (one, Cell(values, number, folder))
            for row, (one, values) in enumerate(zip(chosen, settings, strict=True), 1)
            for number in every
            if (folder := f"setting-{row}/seed-{number}")
        }
        with record.folder.lock():
            record.folder.sweep()
            result = record.train(header, cells, engine, options, log)
            log(f"\n{result}")
            page = write_sweep_page(result, base.name)
    log(f"sweep     {result.path / SWEEP}\npage      {page}")
    return result


class _SweepRecord(CellsRecord):
    NAME: ClassVar[str] = SWEEP

    @classmethod
    def matching(cls, header: Mapping[str, Any], name: str, out: Path | None) -> _SweepRecord | None:
        """Return the folder of the same sweep: `out`, or else the newest unfinished one."""
        for path in sorted(ROOT.glob(f"{name}-sweep*"), reverse=True) if out is None else [out]:
            record = cls(RunFolder(path))
            if not record.is_begun:
                continue
            if all(record.environment.get(key) == value for key, value in header.items()):
                if out is not None or not record.is_finished:
                    return record
            elif out is not None:
                raise InputError(f"{out} holds a sweep of other settings or seeds", "Choose another --out.")
        return None

    def train(
        self,
        header: Mapping[str, Any],
        cells: Mapping[Path, tuple[Recipe, Cell]],
        engine: Engine,
        options: Mapping[str, Any],
        log: Log,
    ) -> Sweep:
        """Train what is not finished, and write after each cell what is known."""
        known = {path: _read(path, cell) for path, (_, cell) in cells.items()}
        shared = fixed(header["settings"])

        def title(cell: Cell) -> str:
            return words({key: value for key, value in cell.values.items() if key not in shared})

        plans = [
            Plan(
                dataclasses.replace(recipe, seed=cell.seed),
                path,
                f"{title(cell)}, seed {cell.seed} ({number} of {len(cells)})",
            )
            for number, (path, (recipe, cell)) in enumerate(cells.items(), 1)
            if known[path] is None
        ]

        def write(*, finished: bool = False) -> Sweep:
            result = Sweep(self.path, tuple(cell for cell in known.values() if cell))
            rows, best = (
                [dataclasses.asdict(cell) for cell in result.cells],
                result.best if finished else None,
            )
            values = {**header, "finished": finished, "best_by_validation": best, "cells": rows}
            self.folder.write_json(SWEEP, values)
            return result

        def done() -> str:
            count = sum(cell is not None and not cell.failed for cell in known.values())
            return f"{count} of {len(cells)} cells are done"

        write()
        if len(plans) < len(cells):
            log(done())
        with (
            stops_explained(self, done, "the same command", log),
            contextlib.closing(engine(plans, train, options, log)) as ended,
        ):
            for plan, failure in ended:
                cell = cells[plan.path][1]
                if failure is not None:
                    log(f"failed: {failure.message}")
                known[plan.path] = (
                    _read(plan.path, cell)
                    if failure is None
                    else dataclasses.replace(cell, failed=failure.message)
                )
                write()
            return write(finished=True)


def _read(path: Path, cell: Cell) -> Cell | None:
    """Return the cell with the numbers of its run, None where that is not finished."""
    run = Run(RunFolder(path))
    if not run.is_finished:
        return None
    names = ("validation_accuracy", "test_accuracy", "train_seconds", "threads", "hardware")
    return dataclasses.replace(cell, **{name: getattr(run.summary, name) for name in names})


def _engine(on: str, threads: int | None, gpus: float, device: str) -> tuple[Engine, str, int]:
    """Return what trains the cells, with the device and the threads that "auto" and None come to."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads takes a whole number of at least 1, not {threads!r}")
    if on not in ("local", "ray"):
        raise InputError(f"a sweep runs on local or ray, not on {on!r}")
    if gpus < 0 or (gpus and on == "local"):
        raise InputError(f"gpus={gpus:g} is no number of GPUs to ask Ray for", "Such as --on ray --gpus 1")
    if on == "local":
        return one_after_another, device, threads or torch.get_num_threads()
    if device not in ("auto", "cpu") and not gpus:
        raise InputError(
            f"Ray gives cells that ask for no GPU none, so {device} is not there", "Add --gpus 1."
        )
    engine = OnRay(threads or 1, gpus)
    return engine, ("cuda" if gpus else "cpu") if device == "auto" else device, engine.threads


def absolute(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths: a worker of a cluster works in another folder."""
    paths = {
        each.key: str(Path(each.value).expanduser().absolute())
        for each in recipe.settings()
        if each.value and Path in typing.get_args(each.hint)
    }
    return recipe.replace(**paths)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside the `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
