"""Publish a finished run: its evidence in benchmarks/runs/NAME, and its row in benchmarks/runs/runs.csv.

    python -m benchmarks.publish.evidence runs/cifar10.assignment --name assignment-seed0

Evidence is what `firstlight report` can draw from without any picture of the data: summary, recipe,
environment, finding, history, and the probabilities of the test set as float16.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.measure import BENCHMARKS, record
from firstlight.errors import InputError
from firstlight.record.record import ENVIRONMENT, FINDING, HISTORY, PREDICTIONS, SUMMARY
from firstlight.record.run_folder import RECIPE, RunFolder

RUNS = BENCHMARKS / "runs"


def publish(run: Path, name: str, note: str = "", recipe: str = "") -> Path:
    """Copy the evidence of a run that was evaluated, and add its row; recipe: how that calls its own."""
    source = RunFolder.open(run)
    summary = source.read_json(SUMMARY) if source.has(SUMMARY) else {}
    if summary.get("test_accuracy") is None:
        raise InputError(f"{run} was not evaluated, so there is nothing to publish")
    target = RunFolder.create(name, RUNS / name)
    for file in (RECIPE, ENVIRONMENT, FINDING, HISTORY, SUMMARY):
        if source.has(file):
            shutil.copyfile(source.path / file, target.path / file)
    tensors = source.read_tensors(PREDICTIONS)
    half = {
        key: value.half() if value.is_floating_point() else value.to(torch.int64)
        for key, value in tensors.items()
    }
    target.write_tensors(PREDICTIONS, half)
    low, high = summary.pop("test_interval_95")
    summary.pop("schema")
    rates = "found" if source.has(FINDING) else "given"
    row = {**summary, "rates": rates, "test_low_95": low, "test_high_95": high, "evidence": name}
    row["recipe"] = recipe or row["recipe"]
    record(__file__, None, RUNS / "runs.csv", **row, note=note)
    return target.path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("run", type=Path, help="a finished run folder")
    options.add_argument("--name", required=True, help="the name of the evidence folder")
    options.add_argument("--note", default="", help="what a reader of the row should know")
    options.add_argument("--recipe", default="", help="how its row calls it, where settings were changed")
    arguments = options.parse_args()
    try:
        print(publish(arguments.run, arguments.name, arguments.note, arguments.recipe))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
