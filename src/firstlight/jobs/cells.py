"""Cells: runs that differ in setting or seed alone, each in a folder of its own below that of the job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from firstlight.errors import InputError, RunFailed
from firstlight.jobs.job import Job
from firstlight.machine.clock import duration
from firstlight.recipe import Recipe
from firstlight.record.recipe_file import recipe_from_json
from firstlight.record.run_folder import RunFolder
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


class CellsRecord:
    """The folder of several runs: what was asked for, and each run in a folder of its own."""

    NAME: ClassVar[str]

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.path = folder, folder.path

    @classmethod
    def open(cls, path: Path) -> Self:
        record = cls(RunFolder(path))
        if not record.is_begun:
            raise InputError(f"{path} holds no {cls.NAME}", "Choose another --out, or leave --seeds out.")
        return record

    @property
    def is_begun(self) -> bool:
        return self.folder.has(self.NAME)

    @property
    def is_finished(self) -> bool:
        return bool(self.environment.get("finished"))

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.folder.read_json(self.NAME)

    @cached_property
    def recipe(self) -> Recipe:
        values = self.environment.get("recipe")
        if not isinstance(values, dict):
            raise InputError(f"{self.path / self.NAME} names no recipe")
        return recipe_from_json(values)


def seeds_from(first: int, count: int) -> range:
    """Return so many seeds; raises InputError where `count` is no number of them."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"seeds takes a whole number of at least 1, not {count!r}", "For example: --seeds 5")
    return range(first, first + count)


def cost(job: Job, left: int) -> str:
    """Say what so many runs like this one take here."""
    each = sum(job.estimate(job.step_seconds()).values())
    return f"about {duration(left * each)} here" + (f", {left} times {duration(each)}" if left > 1 else "")


@contextlib.contextmanager
def stops_explained(record: CellsRecord, done: Callable[[], str], go_on: str, log: Log) -> Iterator[None]:
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
