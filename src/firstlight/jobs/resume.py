"""Going on with what was stopped, one run or a sweep: in which folder, and is it the same?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from firstlight.data.windows import Blocks
from firstlight.errors import InputError
from firstlight.recipe import KINDS, Recipe
from firstlight.record.run_folder import ROOT, RunFolder


class Resumable(Protocol):
    """What is kept of a job that may have been stopped: a `Record`, or that of a sweep."""

    path: Path

    def __init__(self, folder: RunFolder) -> None: ...

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder that holds it; raises InputError where it holds something else."""
        ...

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to go on with."""
        ...

    @property
    def is_finished(self) -> bool: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def environment(self) -> Mapping[str, Any]:
        """Device and precision, at least."""
        ...


_R = TypeVar("_R", bound=Resumable)


def begun_record(
    kind: type[_R],
    recipe: Recipe,
    out: Path | None,
    resume: bool | str,
    *,
    name: str = "",
    same: Callable[[_R], bool] = lambda record: True,
) -> _R | None:
    """Return what to go on with, None where the job starts anew in a new folder.

    resume: False never goes on, True must find something, "auto" may. name: of the folders to look through
    where `out` is none, by default the recipe's. same: whether one of them is also the same in other ways
    than its recipe. Raises InputError where `out` holds something else, or was begun with another recipe.
    """
    name = name or recipe.name
    if resume not in (False, True, "auto"):
        raise InputError(f'resume takes True, False or "auto", not {resume!r}')
    if not resume:
        if out is not None and out.exists():
            hint = "Choose another --out, remove it, or go on with --resume."
            raise InputError(f"{out} exists already", hint)
        return None
    record = _newest_unfinished(kind, recipe, name, same) if out is None else _in_place(kind, out)
    if record is None:
        if resume is True:
            where = out or f"{ROOT}/{name}"
            raise InputError(f"there is nothing to resume at {where}", 'resume="auto" would start anew.')
        return None
    if record.is_begun and record.recipe.to_json() != recipe.to_json():
        raise InputError(
            f"{record.path} was begun with {_differences(record.recipe, recipe)}",
            "Give the same settings, or another --out.",
        )
    return record


def _in_place(kind: type[_R], out: Path) -> _R | None:
    if not out.exists():
        return None
    if out.is_dir():
        # Killed before its first step: nothing in it is worth more than starting again.
        left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        if left <= {"samples.safetensors", "environment.json", "finding.json"}:
            return kind(RunFolder(out))
    return kind.open(out)


def _newest_unfinished(kind: type[_R], recipe: Recipe, name: str, same: Callable[[_R], bool]) -> _R | None:
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    numbered = [(pattern.fullmatch(path.name), path) for path in ROOT.glob(f"{name}*") if path.is_dir()]
    for _, path in sorted(((int(match[1] or 1), path) for match, path in numbered if match), reverse=True):
        record = kind(RunFolder(path))
        if not record.is_begun or record.is_finished or record.recipe.to_json() != recipe.to_json():
            continue
        if same(record):
            return kind.open(path)
    return None


def _differences(before: Recipe, now: Recipe) -> str:
    """Name the settings in which two recipes differ, with both values."""
    old = {each.key: each.value for each in before.settings() if each.key not in KINDS}
    new = {each.key: each.value for each in now.settings() if each.key not in KINDS}
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)}, not {new.get(key)}" for key in keys) or "other parts"


def pinned(record: Resumable | None, device: str, precision: str) -> tuple[str, str]:
    """Return device and precision of what was begun; a measurement could choose otherwise this time."""
    if record is None or not record.is_begun:
        return device, precision
    begun = record.environment
    for name, asked in (("device", device), ("precision", precision)):
        if asked not in ("auto", begun.get(name)):
            raise InputError(
                f"{record.path} was begun with {name} {begun.get(name)}, not {asked}", f"Leave --{name} out."
            )
    return str(begun.get("device")), str(begun.get("precision"))


def begun_blocks(record: Resumable | None, here: Blocks | None) -> Blocks | None:
    """Return the order of what was begun, also where there is more or less memory now."""
    if record is None or not record.is_begun:
        return here
    block, window = (record.environment.get(f"{name}_images") for name in ("block", "window"))
    if block is None and window is None:
        return None
    if not (isinstance(block, int) and isinstance(window, int) and 1 <= block <= window):
        raise InputError(f"{record.path} names no order of its images", "Start anew, in another --out.")
    return Blocks(block, window)


_NAMED = (
    "firstlight",
    "torch",
    "hardware",
    "threads",
    "platform",
    "allocator",
    "kernels",
    "step",
    "determinism",
)
"""What may differ when a run goes on, but is then named: the result is as good, not the same to the bit."""


def check_unchanged(record: Resumable | None, now: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Refuse to go on with other data; name every other difference that can change the last bits."""
    if record is None or not record.is_begun:
        return
    begun = record.environment
    if begun.get("data") != now["data"]:
        raise InputError(
            f"the data is not what {record.path} was begun with", "Give the same data, or another --out."
        )
    before, here = begun.get("ranks", 1), now.get("ranks", 1)
    if before != here:
        raise InputError(
            f"{record.path} was begun by {_processes(before)}, and {_processes(here)} would go on",
            "Start as many again: torchrun --nproc-per-node N -m firstlight train … --resume.",
        )
    for key in _NAMED:
        if key in begun and begun[key] != now[key]:
            say(
                f"note: {key} was {begun[key]} and is {now[key]}; "
                "the result will be as good, but not the same to the last bit"
            )


def _processes(count: object) -> str:
    return "one process" if count == 1 else f"{count} processes"
