"""A grid of settings under several seeds: which is best by validation, what fails, what goes on."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import firstlight
from firstlight import recipes
from firstlight.cli import main
from firstlight.errors import InputError
from firstlight.jobs.cluster import check_answers
from firstlight.jobs.grid import grid, split_values
from firstlight.jobs.sweep import absolute, sweep
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
    assert str(result).endswith("best by validation: peak_lr=0.1")  # there is no other to compare with
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


def test_differences_are_paired_by_seed_and_corrected_for_all_pairs() -> None:
    accuracies = {
        "a": (0.80, 0.82, 0.81),
        "b": (0.90, 0.92, 0.915),
        "c": (0.80, 0.82, 0.811),
        "d": (0.5, 0.6),
    }
    cells = [
        Cell({"model": name, "epochs": "1"}, seed, f"{name}-{seed}", value)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    result = Sweep(Path("out"), (*cells, Cell({"model": "d", "epochs": "1"}, 2, "d-2", failed="diverged")))
    assert result.best == {"model": "b", "epochs": "1"} and result.title(result.best) == "model=b"
    assert len(result.differences) == 3  # a setting with a failed seed is compared with none
    from_a, from_c = result.against_best()
    assert from_a.differences == pytest.approx((0.10, 0.10, 0.105))
    p_values = [row.p_value for row in (from_a, from_c) if row.p_value is not None]
    assert min(row.adjusted or 1 for row in (from_a, from_c)) == pytest.approx(3 * min(p_values))
    assert from_a.differs and from_c.differs
    (worst,) = [row for row in result.differences if result.best not in (row.first, row.second)]
    assert not worst.differs and worst.adjusted == worst.p_value
    assert "model=b; better than 2 of 2 others" in str(result) and "for 3 pairs" in str(result)


def test_a_random_sample_is_part_of_the_grid_and_the_same_for_the_same_seed() -> None:
    axes = {"peak_lr": [0.1, 0.2, 0.4], "sides": [(24, 32), (32,)], "batch_size": [128, 256]}
    whole, sample = grid(axes, None, 0), grid(axes, 5, 0)
    assert len(whole) == 12 and whole[0] == {"peak_lr": "0.1", "sides": "24,32", "batch_size": "128"}
    assert [row for row in whole if row in sample] == sample and len(sample) == 5
    assert grid(axes, 5, 0) == sample != grid(axes, 5, 1)
    assert grid(axes, 100, 0) == whole
    huge = grid({str(number): range(10) for number in range(12)}, 3, 0)
    assert len({tuple(row.values()) for row in huge}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "moon"}, "local or ray"),
        ({"threads": 0}, "threads takes"),
        ({"gpus": 1}, "no number of GPUs"),
        ({"random": 0}, "random takes"),
        ({"seeds": 0}, "seeds takes"),
        ({"axes": {"seed": [1]}}, "seed is no setting"),
        ({"axes": {"peak_lr": "0.1"}}, "list of values"),
        ({"axes": {"peak_lr": ["0.1"], "width": ["wide"]}}, "width takes"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep("shapes.demo", **{"axes": {}, "out": "out", "quiet": True, **options})
    assert not Path("out").exists()


def test_without_ray_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "shapes.demo", "--on", "ray", "--out", "out"])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert "pip install 'firstlight[cluster]'" in captured.err and not Path("out").exists()


def test_a_cluster_that_does_not_answer_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
            check_answers(address)


def test_threads_are_those_of_the_runs_and_put_back_and_paths_are_absolute(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    result = sweep("shapes.demo", {"peak_lr": [0.1], **FIXED}, threads=before + 1, out="out", **PLACE)
    assert [cell.threads for cell in result.cells] == [before + 1] and torch.get_num_threads() == before
    assert Sweep.open("out") == Sweep(Path("out"), result.cells)
    recipe = recipes.named("folder.scratch").replace(path="photos")
    assert absolute(recipe).data == recipe.replace(path=str(tmp_path / "photos")).data


def test_without_validation_images_or_data_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation images"):
        sweep("shapes.demo", {"peak_lr": ["0.1", "0.2"], "validation": ["0"]}, out="out")
    with pytest.raises(InputError, match="no CIFAR-10"):
        sweep("cifar10.assignment", {"peak_lr": ["0.1"]}, data_dir=tmp_path, out="out", quiet=True)
    assert not Path("out").exists()
