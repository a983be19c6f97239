"""What every benchmark shares: options, ways timed in turn, a process of its own, a row of what it finds.

torch is loaded only where it is needed, since reference.py times how long that takes.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.data.images import ImageSet
    from firstlight.machine.machine import Machine

BENCHMARKS = Path(__file__).resolve().parent
Row = dict[str, str]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with a script's first line and the option --record."""
    options = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    options.add_argument("--record", action="store_true", help="keep the result beside the script")
    return options


def seconds_in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time each way once a round, A B A B …, so that other work on the machine slows all of them alike.

    warm_up: rounds before the first that counts. wait: called before a clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm_up + rounds):
        for name, way in ways.items():
            wait()
            start = time.perf_counter()
            way()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[warm_up:] for name, times in seconds.items()}


@contextmanager
def own_process(**environment: str) -> Iterator[Callable[..., Any]]:
    """Give what calls a function of a module in a new interpreter, with variables of its environment.

    It stays the same interpreter until the end, so that several can take turns.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda work, *arguments: pool.submit(_call, environment, work, arguments).result()


def in_own_process(work: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Return what a function of a module returns in a new interpreter, with variables of its environment."""
    with own_process(**environment) as call:
        return call(work, *arguments)


def _call(environment: Mapping[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ.update(environment)
    return work(*arguments)


def random_images(count: int) -> ImageSet:
    """Return images of CIFAR-10's size and number of classes, drawn at random."""
    import torch

    from firstlight.data.images import ImageSet
    from firstlight.machine.streams import stream

    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "pixels"))
    labels, names = torch.arange(count) % 10, [str(number) for number in range(count)]
    return ImageSet(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, names)


def assignment_step(machine: Machine) -> Callable[[], object]:
    """Return a training step of the assignment, on a batch of random images."""
    from firstlight.data.batches import Batches
    from firstlight.machine.streams import seeded
    from firstlight.recipes import named
    from firstlight.training.loop import train_step
    from firstlight.training.state import TrainState

    recipe = named("cifar10.assignment")
    with seeded(0, "weights"):
        state = TrainState.create(recipe.model(10), recipe.optimizer, machine)
    size = recipe.batch_size
    batch = next(Batches(random_images(size), size, recipe.augment, seed=0, machine=machine).epoch(0))
    return lambda: train_step(state, *batch, 0.01, recipe.objective, machine)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a table, oldest first; every value is text, empty where a row has none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items()} for row in csv.DictReader(file)]


def place(machine: Machine) -> dict[str, Any]:
    """Return the part of a row that says where it was measured."""
    import torch

    return {
        "hardware": machine.hardware,
        "torch": torch.__version__,
        "device": machine.device.type,
        "precision": machine.precision,
        "threads": machine.threads,
    }


def record(
    script: str, machine: Machine | None, path: Path | None = None, *, keep: bool = True, **values: Any
) -> None:
    """Print a row, and append it unless told not to keep it: the script, the date, the place, and values.

    script: its `__file__`. machine: None where `values` say what was run on. path: the table, by default the
    CSV beside the script; a value that no earlier row has becomes a column at its end.
    """
    file = Path(script).resolve()
    where = {} if machine is None else place(machine)
    shown = {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in values.items()}
    print("; ".join(f"{key} {value}" for key, value in {**where, **shown}.items()), flush=True)
    if keep:
        name = file.relative_to(BENCHMARKS.parent).as_posix()
        row = {"script": name, "date": datetime.now(UTC).date().isoformat(), **where, **values}
        _append(row, path or file.with_suffix(".csv"))


def _append(row: Mapping[str, Any], path: Path) -> None:
    rows = [*read_rows(path), {key: "" if value is None else str(value) for key, value in row.items()}]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    aside = path.with_suffix(".tmp")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(path)
