"""Several seeds of one recipe: each a whole run, and what their mean and scatter say of the recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.errors import InputError, RunFailed
from firstlight.insight.intervals import Spread
from firstlight.jobs.job import Job
from firstlight.jobs.resume import failures_explained, is_finished
from firstlight.machine.clock import duration
from firstlight.recipe import Recipe
from firstlight.record import record
from firstlight.record.run_folder import ROOT, RunFolder
from firstlight.run import Run

SEEDS = "seeds.json"
"""In the outer folder: which seeds of which recipe, and what came out of them so far."""


@dataclass(frozen=True)
class Seeds:
    """Finished runs that differ in their seed alone. accuracies: on the test set, without TTA, as fractions.

    sd: of one run; None of a single seed. interval: 95 %, of the mean over seeds, by Student's t; of a
        single seed that of its one accuracy, over the test images.
    """

    path: Path
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float]
    accuracies_tta: tuple[float, ...]
    mean_tta: float
    sd_tta: float | None
    interval_tta: tuple[float, float]
    train_seconds: float

    def __str__(self) -> str:
        """Say accuracy with its scatter, without and with TTA, and the mean time of training."""
        one = len(self.runs) == 1
        named = "1 seed" if one else f"{len(self.runs)} seeds"
        what = "over test images, since one seed says nothing of others" if one else "of the mean, over seeds"

        def said(mean: float, sd: float | None, interval: tuple[float, float]) -> str:
            scatter = "" if sd is None else f"sd {sd:.2%}, "
            return f"{scatter}95 % interval {interval[0]:.2%} to {interval[1]:.2%} {what}"

        return (
            f"{named}: test accuracy {self.mean:.2%} without TTA "
            f"({said(self.mean, self.sd, self.interval)})\n"
            f"{self.mean_tta:.2%} with TTA ({said(self.mean_tta, self.sd_tta, self.interval_tta)})\n"
            f"training took {duration(self.train_seconds)}{'' if one else ' on average'}"
        )


def train_seeds(
    recipe: Recipe,
    count: int | str,
    *,
    out: Path | None,
    resume: bool | str,
    on: tuple[str, str],
    prepare: Callable[[str, str], Job],
    one: Callable[[Recipe, Path, str, str], Run],
    say: Callable[[str], None],
) -> Seeds:
    """Train `count` seeds of a recipe, the recipe's own first, and say how they scatter.

    Each is a run of its own in OUT/seed-N.

    on: device and precision as asked; what they come to for the first job is that of all seeds.
    prepare: makes the first job ready, from device and precision. one: trains a recipe in a folder, or goes
        on there, on that device in that precision.
    """
    seeds = range(recipe.seed, recipe.seed + _whole(count))
    folder = _folder_to_resume(recipe, seeds, out, resume)
    if folder is None and out is not None and out.exists():
        raise InputError(f"{out} exists already", "Choose another --out, remove it, or go on with --resume.")
    if folder is not None:
        on = _pinned(folder, *on)
    done = {} if folder is None else _finished(folder, seeds)
    job = prepare(*on) if len(done) < len(seeds) else None
    if job is not None:
        on = job.machine.device.type, job.machine.precision
    folder = folder or RunFolder.create(recipe.name, out)
    header = {"recipe": recipe.to_json(), "device": on[0], "precision": on[1], "seeds": list(seeds)}
    with folder.lock():
        folder.sweep()
        if job is not None:
            with failures_explained(folder, job):
                _write(folder, header, done)
                say(_cost(job, len(seeds), len(seeds) - len(done)))
            job = None  # its images and network would lie beside those of every seed
        else:
            say(f"{folder.path} is finished already")
        with _stopping_explained(folder, done, len(seeds), say):
            for place, seed in enumerate(seeds, 1):
                if seed not in done:
                    say(f"\nseed {seed}, {place} of {len(seeds)}")
                    where = folder.path / f"seed-{seed}"
                    done[seed] = one(dataclasses.replace(recipe, seed=seed), where, *on)
                    _write(folder, header, done)
            result = _concluded(folder, {seed: done[seed] for seed in seeds})
            _write(folder, header, done, result)
    for line in f"\n{result}\nseeds     {folder.path / SEEDS}".split("\n"):
        say(line)
    return result


def _whole(count: int | str) -> int:
    complaint = InputError(
        f"seeds takes a whole number of at least 1, not {count!r}", "For example: --seeds 5"
    )
    if isinstance(count, bool) or not isinstance(count, (int, str)):
        raise complaint
    try:
        number = int(count)
    except ValueError:
        raise complaint from None
    if number < 1:
        raise complaint
    return number


def _folder_to_resume(recipe: Recipe, seeds: range, out: Path | None, resume: bool | str) -> RunFolder | None:
    """Return the outer folder to go on in, None where there is to be a new one; see `resume`."""
    if resume not in (False, True, "auto"):
        raise InputError(f'resume takes True, False or "auto", not {resume!r}')
    if not resume:
        return None
    there = RunFolder(out) if out is not None and out.exists() else None
    found = _newest_unfinished(recipe) if out is None else there
    if found is None:
        if resume is True:
            where = out or f"{ROOT}/{recipe.name}"
            raise InputError(f"there are no seeds to resume at {where}", 'resume="auto" would start anew.')
        return None
    before, seeds_before = _begun(found)
    now = recipe.to_json()
    for key in now:
        if before.get(key) != now[key]:
            raise InputError(
                f"{found.path} was begun with {key} {before.get(key)}, not {now[key]}",
                "Give the same settings, or another --out.",
            )
    if not set(seeds_before) <= set(seeds):
        raise InputError(
            f"{found.path} was begun with {len(seeds_before)} seeds, not {len(seeds)}",
            "Give as many or more, or another --out.",
        )
    return found


def _begun(folder: RunFolder) -> tuple[dict[str, Any], list[int]]:
    """Return recipe and seeds of a folder of seeds."""
    if not folder.has(SEEDS):
        raise InputError(f"{folder.path} holds no {SEEDS}", "Choose another --out, or leave --seeds out.")
    values = folder.read_json(SEEDS)
    recipe, seeds = values.get("recipe"), values.get("seeds")
    if not isinstance(recipe, dict) or not isinstance(seeds, list):
        raise InputError(f"{folder.path / SEEDS} names no recipe or no seeds")
    return recipe, seeds


def _newest_unfinished(recipe: Recipe) -> RunFolder | None:
    pattern = re.compile(re.escape(recipe.name) + r"(?:-(\d+))?")
    numbered = [(pattern.fullmatch(path.name), path) for path in ROOT.glob(f"{recipe.name}*")]
    for _, path in sorted(((int(match[1] or 1), path) for match, path in numbered if match), reverse=True):
        folder = RunFolder(path)
        unfinished = folder.has(SEEDS) and not folder.read_json(SEEDS).get("finished")
        if unfinished and _begun(folder)[0] == recipe.to_json():
            return folder
    return None


def _pinned(folder: RunFolder, device: str, precision: str) -> tuple[str, str]:
    """Return device and precision of the begun seeds; a measurement could choose otherwise this time."""
    begun = folder.read_json(SEEDS)
    for name, asked in (("device", device), ("precision", precision)):
        if asked not in ("auto", begun.get(name)):
            raise InputError(
                f"{folder.path} was begun with {name} {begun.get(name)}, not {asked}", f"Leave --{name} out."
            )
    return str(begun.get("device")), str(begun.get("precision"))


def _finished(folder: RunFolder, seeds: Sequence[int]) -> dict[int, Run]:
    """Return the runs that came to their end."""
    inner = {seed: RunFolder(folder.path / f"seed-{seed}") for seed in seeds}
    return {seed: Run.open(each.path) for seed, each in inner.items() if is_finished(each)}


def _cost(job: Job, count: int, left: int) -> str:
    """Say what the seeds that are left will take here."""
    each = sum(job.estimate(job.step_seconds()).values())
    named = "1 seed" if count == 1 else f"{count} seeds"
    total = duration(left * each) + (f", {left} times {duration(each)}" if left > 1 else "")
    rest = "" if left == count else f" for the {left} that are left"
    return f"{named} of {job.recipe.name}: about {total} here{rest}"


@contextlib.contextmanager
def _stopping_explained(
    folder: RunFolder, done: dict[int, Run], count: int, say: Callable[[str], None]
) -> Iterator[None]:
    """Say how far all seeds are where one of them is stopped or fails, or the disk is full."""
    goes_on = "the same command with --resume goes on"
    try:
        yield
    except InputError:
        if not any(folder.path.glob("seed-*")):
            folder.remove(".")  # nothing was trained, so nothing is worth keeping
        raise
    except (KeyboardInterrupt, RunFailed):
        say(f"{len(done)} of {count} seeds are finished; {goes_on} in {folder.path}")
        raise
    except OSError as error:
        what = f"cannot write {error.filename or folder.path}: {error.strerror or error}"
        raise RunFailed(what, f"Make room, then {goes_on}.") from error


def _concluded(folder: RunFolder, done: dict[int, Run]) -> Seeds:
    summaries = [run.summary for run in done.values()]
    plain, mirrored, seconds = (
        Spread(tuple(float(summary[key]) for summary in summaries))
        for key in ("test_accuracy", "test_accuracy_tta", "train_seconds")
    )
    return Seeds(
        path=folder.path,
        runs=tuple(done.values()),
        accuracies=plain.values,
        mean=plain.mean,
        sd=plain.sd,
        interval=_interval(plain, done, tta=False),
        accuracies_tta=mirrored.values,
        mean_tta=mirrored.mean,
        sd_tta=mirrored.sd,
        interval_tta=_interval(mirrored, done, tta=True),
        train_seconds=seconds.mean,
    )


def _interval(spread: Spread, done: dict[int, Run], *, tta: bool) -> tuple[float, float]:
    """Return the interval of the mean, within what a fraction can be; of a single run that over images."""
    if spread.interval is not None:
        low, high = spread.interval
        return max(0.0, low), min(1.0, high)
    (run,) = done.values()
    evaluation = record.read_evaluation(run.folder, tta=tta)
    if evaluation is None:
        raise InputError(f"{run.folder.path} holds no {record.PREDICTIONS}")
    return evaluation.interval


def _write(
    folder: RunFolder, header: dict[str, Any], done: dict[int, Run], result: Seeds | None = None
) -> None:
    """Write what is known so far; with `result` it is all."""
    keys = ("test_accuracy", "test_accuracy_tta", "train_seconds", "wall_seconds")
    rows = [
        {"seed": seed, "folder": f"seed-{seed}", **{key: run.summary.get(key) for key in keys}}
        for seed, run in sorted(done.items())
    ]
    values: dict[str, Any] = {**header, "finished": result is not None, "runs": rows}
    if result is not None:
        over = "images" if len(done) == 1 else "seeds"
        for key, mean, sd, interval in (
            ("test_accuracy", result.mean, result.sd, result.interval),
            ("test_accuracy_tta", result.mean_tta, result.sd_tta, result.interval_tta),
        ):
            values[key] = {"mean": mean, "sd": sd, "interval_95": list(interval), "interval_over": over}
        values["train_seconds"] = result.train_seconds
    folder.write_json(SEEDS, values)
