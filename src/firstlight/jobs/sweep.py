"""`sweep`: a grid of settings × seeds, each cell an ordinary run; the best by validation, never by test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from firstlight.errors import InputError
from firstlight.jobs.cells import Engine, absolute, one_after_another, seeds_from, train_cells
from firstlight.jobs.cluster import OnRay
from firstlight.jobs.failures import terminable
from firstlight.jobs.grid import Axes, grid
from firstlight.jobs.progress import say, silent
from firstlight.jobs.train import train
from firstlight.recipe import Recipe
from firstlight.recipes import resolve
from firstlight.record.sweep import Sweep


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
    options = {"data_dir": data, "determinism": determinism, "checkpoint_minutes": checkpoint_minutes}
    options |= {"device": device, "precision": precision, "quiet": quiet}
    with _threads(threads), terminable():
        return train_cells(
            base,
            [*zip(chosen, settings, strict=True)],
            every,
            train,
            engine,
            options,
            name=f"{base.name}-sweep",
            out=None if out is None else Path(out),
            resume="auto",
            log=log,
            is_chosen_here=gpus == 0,
        )


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


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside the `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
