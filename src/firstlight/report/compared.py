"""Two runs on the same images, opened and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from firstlight.errors import InputError
from firstlight.insight.comparison import Comparison
from firstlight.insight.comparison import compare as compare_evaluations
from firstlight.insight.evaluation import Evaluation
from firstlight.record import contents
from firstlight.report.opened import Run, open_run


def compare(before: str | Path | Run, after: str | Path | Run) -> Comparison:
    """Compare what two runs say of the test images, without test-time augmentation.

    Names of images come from each run's own table of mistakes. Raises InputError where the runs have
    different classes or were judged on different images.
    """
    first, second = open_run(before), open_run(after)
    if first.data.classes != second.data.classes:
        raise InputError(
            f"{first.folder.path} and {second.folder.path} have different classes",
            f"The first has {_few(first.data.classes)}; the second {_few(second.data.classes)}.",
        )
    # Where neither run kept a hash, the labels are still compared.
    if _test_hash(first) != _test_hash(second):
        raise InputError(
            f"{first.folder.path} and {second.folder.path} were judged on different test images",
            "Compare runs on the same data.",
        )
    return compare_evaluations(_named(first), _named(second))


def _few(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _test_hash(run: Run) -> object:
    data = run.environment.get("data")
    return data.get("test_sha256") if isinstance(data, dict) else None


def _named(run: Run) -> Evaluation:
    """Return the run's evaluation, with the name of every image that it has wrong."""
    names = list(run.evaluation.names)
    for index, name in contents.read_names(run.folder).items():
        if 0 <= index < len(names):
            names[index] = name
    return dataclasses.replace(run.evaluation, names=names)
