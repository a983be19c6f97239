"""The tables of all benchmarks, and the runs in them by what they have in common."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import BENCHMARKS, Row, read_rows
from firstlight.insight.intervals import Spread

Tables = Mapping[str, list[Row]]
"""Rows by the name of their CSV, oldest first."""


def read_tables() -> Tables:
    """Return every CSV beside a script, and runs.csv; one that is not there has no rows."""
    return defaultdict(
        list,
        {path.stem: read_rows(path) for path in [*BENCHMARKS.glob("*.csv"), *BENCHMARKS.glob("*/*.csv")]},
    )


def table(titles: str, rows: Sequence[str]) -> str:
    """Return a Markdown table of lines whose cells are already joined by |."""
    return "\n".join(f"| {line} |" for line in [titles, re.sub(r"[^|]+", " --- ", titles).strip(), *rows])


def mean(rows: Iterable[Row], key: str) -> float:
    """Return the mean of a column; an empty cell counts as 0."""
    return statistics.fmean(float(row.get(key) or 0) for row in rows)


@dataclass(frozen=True)
class Group:
    """Runs of a recipe that differ in their seed alone."""

    runs: list[Row]

    @property
    def newest(self) -> Row:
        return self.runs[-1]

    @property
    def recipe(self) -> str:
        return self.newest["recipe"]

    @property
    def hardware(self) -> str:
        return self.newest["hardware"]

    @property
    def rates(self) -> str:
        """Whether the learning rates were found or given; the first rows, which lack it, had them found."""
        return self.newest.get("rates") or "found"

    def accuracy(self, *, tta: bool) -> Spread:
        return Spread(tuple(float(run["test_accuracy_tta" if tta else "test_accuracy"]) for run in self.runs))

    def interval(self, *, tta: bool) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean; of a single run that over images, known without TTA alone."""
        interval, run = self.accuracy(tta=tta).interval, self.newest
        if interval is None and not tta and run.get("test_low_95"):
            return float(run["test_low_95"]), float(run["test_high_95"])
        return interval

    def seconds(self, *, tta: bool) -> float:
        """Return the mean time from the first step to the last, or to the last forward pass of TTA.

        The first run of a process on a GPU also pays for what the others find ready: it counts only alone.
        """
        warm = [run for run in self.runs if run.get("start") != "cold"] or self.runs
        keys = ["train_seconds", "checkpoint_seconds", *(["tta_seconds"] if tta else [])]
        return sum(mean(warm, key) for key in keys)


def groups(tables: Tables) -> list[Group]:
    """Return the published runs by recipe, hardware, precision, epochs and kind of rates."""
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in [*tables["runs"], *tables["gpu"]]:
        # A row of medians has no accuracy, and a changed recipe is not the recipe.
        if row.get("test_accuracy") and not row.get("settings"):
            same = [row.get(key, "") for key in ("recipe", "hardware", "precision", "epochs")]
            grouped.setdefault((*same, row.get("rates") or "found"), []).append(row)
    return [Group(runs) for runs in grouped.values()]


def yardsticks(tables: Tables) -> dict[str, Row]:
    """Return the newest row of reference.py for each chip; its r_seconds is R."""
    return {row["hardware"]: row for row in tables["reference"]}


def short(hardware: str) -> str:
    """Return a GPU's name without its maker and its memory, a CPU's without its cores."""
    hardware = hardware.split(",")[0].replace("(R)", "").replace(" Processor", "")
    words = hardware.removeprefix("NVIDIA ").split()
    # What stands in parentheses is the micro-architecture.
    plain = list(itertools.takewhile(lambda word: not word.startswith("("), words))
    numbered = [index for index, word in enumerate(plain) if any(sign.isdigit() for sign in word)]
    return " ".join(words[: numbered[0] + 1] if numbered else words)
