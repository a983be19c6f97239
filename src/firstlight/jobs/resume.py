"""Going on with a run that was stopped: which folder, whether it is the same run, what a failure says."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from firstlight.errors import InputError, RunFailed
from firstlight.jobs.job import Job
from firstlight.recipe import Recipe
from firstlight.record import record
from firstlight.record.run_folder import RECIPE, ROOT, RunFolder

_BEFORE_THE_RECIPE = {record.SAMPLES, record.ENVIRONMENT, record.FINDING}
_NAMED = ("firstlight", "torch", "hardware", "threads", "platform", "allocator", "kernels", "determinism")
"""What may differ when a run goes on, but is then named: the result is as good, not the same to the bit."""


def folder_to_resume(recipe: Recipe, out: Path | None, resume: bool | str) -> RunFolder | None:
    """Return the run folder to go on with, None where the run starts anew.

    resume: False never, True must find one, "auto" may.
    """
    if resume not in (False, True, "auto"):
        raise InputError(f'resume takes True, False or "auto", not {resume!r}')
    if not resume:
        return None
    found = _in_place(out) if out is not None else _newest_unfinished(recipe)
    if found is None:
        if resume is True:
            where = out or f"{ROOT}/{recipe.name}"
            raise InputError(f"there is nothing to resume at {where}", 'resume="auto" would start anew.')
        return None
    if found.has(RECIPE):
        _check_recipe(found, recipe)
    return found


def _in_place(out: Path) -> RunFolder | None:
    if not out.exists():
        return None
    if out.is_dir() and not (out / RECIPE).exists():
        # Killed before it counted as a run: nothing in it is worth more than starting again.
        left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        if left <= _BEFORE_THE_RECIPE:
            return RunFolder(out)
    return RunFolder.open(out)


def _newest_unfinished(recipe: Recipe) -> RunFolder | None:
    pattern = re.compile(re.escape(recipe.name) + r"(?:-(\d+))?")
    numbered = [
        (pattern.fullmatch(path.name), path) for path in ROOT.glob(f"{recipe.name}*") if path.is_dir()
    ]
    ours = sorted(((int(match[1] or 1), path) for match, path in numbered if match), reverse=True)
    for _, path in ours:
        folder = RunFolder(path)
        if folder.has(RECIPE) and not is_finished(folder) and record.read_recipe(folder) == recipe:
            return RunFolder.open(path)
    return None


def is_finished(folder: RunFolder) -> bool:
    """Tell whether a run came to its end, its page included."""
    done = record.read_summary(folder)
    return done.get("test_accuracy") is not None and not done.get("interrupted") and folder.has(record.REPORT)


def _check_recipe(folder: RunFolder, recipe: Recipe) -> None:
    before, now = record.read_recipe(folder).to_json(), recipe.to_json()
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = ", ".join(f"{key} {before.get(key)}, not {now[key]}" for key in changed)
        raise InputError(
            f"{folder.path} was begun with {listed}", "Give the same settings, or another --out."
        )


def pinned(folder: RunFolder, device: str, precision: str) -> tuple[str, str]:
    """Return device and precision of the begun run; a measurement could choose otherwise this time."""
    if not folder.has(RECIPE):
        return device, precision
    begun = folder.read_json(record.ENVIRONMENT)
    for name, asked in (("device", device), ("precision", precision)):
        if asked not in ("auto", begun.get(name)):
            raise InputError(
                f"{folder.path} was begun with {name} {begun.get(name)}, not {asked}", f"Leave --{name} out."
            )
    return str(begun.get("device")), str(begun.get("precision"))


def check_unchanged(job: Job, folder: RunFolder, say: Callable[[str], None]) -> RunFolder:
    """Refuse to go on with other data; name every other difference that can change the last bits."""
    if not folder.has(RECIPE):
        return folder
    begun, now = folder.read_json(record.ENVIRONMENT), job.environment()
    if begun.get("data") != now["data"]:
        raise InputError(
            f"the data is not what {folder.path} was begun with", "Give the same data, or another --out."
        )
    for key in _NAMED:
        if begun.get(key) != now[key]:
            say(
                f"note: {key} was {begun.get(key)} and is {now[key]}; "
                "the result will be as good, but not the same to the last bit"
            )
    return folder


@contextlib.contextmanager
def failures_explained(
    folder: RunFolder,
    job: Job,
    *,
    room: str = "Make room, then go on from the last checkpoint with --resume.",
    smaller: str = "--set batch_size={} fits here.",
) -> Iterator[None]:
    """Turn a full disk or exhausted memory into one sentence and what to do.

    room, smaller: the hints, of which the second is given the batch size that fits.
    """
    try:
        yield
        return
    except OSError as error:
        what = f"cannot write {error.filename or folder.path}: {error.strerror or error}"
        raise RunFailed(what, room) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        # The failed step's tensors hang on its frames; without them there is room to try a smaller one.
        traceback.clear_frames(error.__traceback__)
    size, fits = job.recipe.batch_size, job.batch_that_fits()
    hint = smaller.format(fits) if fits else "Choose a narrower network: --set width=…"
    raise RunFailed(f"out of memory with batches of {size}", hint)


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in said
        or "can't allocate memory" in said
        or "not enough memory" in said
    )
