"""Publish a finished run: its row in results.csv, and its evidence in benchmarks/runs/NAME.

    python benchmarks/publish.py runs/cifar10.assignment --name assignment-seed0

Evidence is what `firstlight report` can draw from without any picture of the data: summary, recipe,
environment, finding, history, and the probabilities of the test set as float16.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from rows import add_row

from firstlight.errors import InputError
from firstlight.record import record
from firstlight.record.run_folder import RECIPE, RunFolder

EVIDENCE = Path(__file__).with_name("runs")
TEXTS = (RECIPE, record.ENVIRONMENT, record.FINDING, record.HISTORY, record.SUMMARY)


def publish(run: Path, name: str, note: str = "") -> Path:
    """Copy the evidence of a run that was evaluated, and add its row."""
    source = RunFolder.open(run)
    summary = record.read_summary(source)
    if summary.get("test_accuracy") is None:
        raise InputError(f"{run} was not evaluated, so there is nothing to publish")
    target = RunFolder.create(name, EVIDENCE / name)
    for text in TEXTS:
        if source.has(text):
            shutil.copyfile(source.path / text, target.path / text)
    tensors = source.read_tensors(record.PREDICTIONS)
    half = {
        key: value.half() if value.is_floating_point() else value.to(torch.int64)
        for key, value in tensors.items()
    }
    target.write_tensors(record.PREDICTIONS, half)
    low, high = summary.pop("test_interval_95")
    summary.pop("schema")
    rates = "found" if source.has(record.FINDING) else "given"
    row = {"script": "firstlight train, benchmarks/publish.py", **summary, "rates": rates}
    add_row({**row, "test_low_95": low, "test_high_95": high, "evidence": name, "note": note})
    return target.path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--name", required=True, help="the name of the evidence folder")
    parser.add_argument("--note", default="", help="what a reader of the row should know")
    arguments = parser.parse_args()
    try:
        print(publish(arguments.run, arguments.name, arguments.note))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
