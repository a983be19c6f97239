"""A grid of settings under several seeds: which is best by validation, what fails, what goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import firstlight
from firstlight.errors import InputError
from firstlight.jobs.grid import grid, split_values
from firstlight.jobs.sweep import sweep
from firstlight.record import record
from firstlight.record.sweep import SWEEP, Cell, Sweep
from firstlight.run import Run

FIXED = {
    **{"train": ["120"], "test": ["60"], "width": ["2"], "batch_size": ["20"], "min_lr": ["0.01"]},
    "validation": ["20"],
}
PLACE: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "quiet": True}


@pytest.fixture(autouse=True)
def in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "report", lambda run: run.folder.write(record.REPORT, "drawn"))


def without_clock(cell: Cell) -> Cell:
    return dataclasses.replace(cell, train_seconds=None)


def test_commas_separate_values_and_brackets_hold_a_tuple() -> None:
    assert split_values("0.2, 0.4") == ["0.2", "0.4"]
    assert split_values("(24,32),(16,32)") == ["24,32", "16,32"]
    assert split_values("crop(4,2),flip") == ["crop(4,2)", "flip"]
    for text, message in (("(24,32", "bracket"), ("24)", "bracket"), ("1,,2", "empty")):
        with pytest.raises(InputError, match=message):
            split_values(text)
    with pytest.raises(InputError, match="names the value 1 twice"):
        grid({"peak_lr": ["1", "1"]}, None, 0)


def test_each_cell_is_a_run_and_one_that_diverges_is_a_row_with_its_reason() -> None:
    axes = {"peak_lr": ["1e30", "0.1"], **FIXED}
    result = sweep("shapes.demo", axes, seeds=2, out="out", **PLACE)
    assert [bool(cell.failed) for cell in result.cells] == [True, True, False, False]
    assert "diverged" in result.cells[0].failed
    assert result.best is not None and result.best["peak_lr"] == "0.1"
    run = firstlight.open_run(Path("out/setting-2/seed-1"))
    assert (run.recipe.seed, run.recipe.schedule.peak_lr) == (1, 0.1)
    assert run.summary.validation_accuracy == result.cells[3].validation_accuracy
    values = json.loads(Path("out", SWEEP).read_text())
    assert values["finished"] and values["best_by_validation"] == dict(result.best)


def test_the_same_call_finishes_what_is_missing_and_another_grid_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = {"peak_lr": ["0.1", "0.2"], **FIXED}
    whole = sweep("shapes.demo", axes, out="whole", **PLACE)
    stop = Run.report

    def stopped(run: Run) -> None:
        if run.path.parent.name == "setting-2":
            raise KeyboardInterrupt
        stop(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "report", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep("shapes.demo", axes, out="out", **PLACE)
    first = Path("out/setting-1/seed-0", record.MODEL).stat().st_mtime_ns
    assert not json.loads(Path("out", SWEEP).read_text())["finished"]
    again = sweep("shapes.demo", axes, out="out", **PLACE)
    assert [without_clock(cell) for cell in again.cells] == [without_clock(cell) for cell in whole.cells]
    assert Path("out/setting-1/seed-0", record.MODEL).stat().st_mtime_ns == first
    with pytest.raises(InputError, match="other settings"):
        sweep("shapes.demo", {**axes, "peak_lr": ["0.1", "0.3"]}, out="out", **PLACE)


def test_the_best_is_chosen_by_validation_whatever_the_test_set_says() -> None:
    cells = Cell({"a": "1"}, 0, "x", 0.8, 0.1), Cell({"a": "2"}, 0, "y", 0.7, 0.9)
    assert Sweep(Path("out"), cells).best == {"a": "1"}


def test_without_validation_images_or_data_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation images"):
        sweep("shapes.demo", {"peak_lr": ["0.1", "0.2"], "validation": ["0"]}, out="out")
    with pytest.raises(InputError, match="no CIFAR-10"):
        sweep("cifar10.assignment", {"peak_lr": ["0.1"]}, data_dir=tmp_path, out="out", quiet=True)
    assert not Path("out").exists()
