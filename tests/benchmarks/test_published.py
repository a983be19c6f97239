"""What is published: numbers on pages come from rows, and rows from evidence that can be opened."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.publish import evidence, tables
from benchmarks.publish.rows import groups, read_tables
from firstlight.errors import InputError
from firstlight.record import record
from firstlight.run import Run

ROWS = read_tables()
PUBLISHED = ROWS["runs"]
MARKERS = [
    (page, name)
    for page in tables.pages()
    for name in dict.fromkeys(re.findall(r"<!-- (\w+) -->", page.read_text(encoding="utf-8")))
]


def rows(**by_name: list[dict[str, str]]) -> Any:
    """Return tables with these rows and no others."""
    return defaultdict(list, by_name)


@pytest.mark.parametrize(("page", "name"), MARKERS, ids=lambda value: getattr(value, "stem", value))
def test_a_page_says_what_the_rows_say(page: Path, name: str) -> None:
    text = page.read_text(encoding="utf-8")
    parts = re.findall(rf"<!-- {name} -->\n?(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert len(parts) == text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->")
    assert name in tables.PARTS, f"{page.name} has a marker that nothing fills"
    assert set(parts) == {tables.PARTS[name](ROWS)}, "run `python -m benchmarks.publish.tables`"


def test_a_part_is_filled_wherever_it_stands_and_an_unknown_one_is_an_error() -> None:
    text = "<!-- rates -->old<!-- /rates --> and\n<!-- rates -->\nold\n<!-- /rates -->\n<!-- a remark -->"
    new = tables.rates(ROWS)
    assert tables.filled(text, ROWS) == text.replace("old", new)
    with pytest.raises(InputError, match="Known: best, results"):
        tables.filled("<!-- rate --><!-- /rate -->", ROWS)


def test_the_three_best_numbers_take_a_short_line_each() -> None:
    lines = tables.best(ROWS).splitlines()
    assert len(lines) == 3 and all(len(line) <= 150 for line in lines)
    assert all(re.search(r"\d", line) and re.search(r"AMD|Intel", line) for line in lines)
    assert not re.search(r"\bR\b", " ".join(lines)), "R is explained nowhere on the first screen"


def test_the_clock_of_the_fast_recipe_runs_to_the_last_view_and_its_older_versions_do_not_count() -> None:
    run = {"recipe": "cifar10.fast", "device": "cpu", "hardware": "a chip", "precision": "bf16"}
    old = {**run, "epochs": "8", "test_accuracy": "0.5", "test_accuracy_tta": "0.5"}
    new = {**run, "epochs": "10", "test_accuracy": "0.90", "checkpoint_seconds": "1.5", "tta_seconds": "8.5"}
    seeds = [
        {**new, "test_accuracy_tta": "0.91", "train_seconds": "130"},
        {**new, "test_accuracy_tta": "0.93", "train_seconds": "150"},
    ]
    reference = [{"hardware": "a chip", "r_seconds": "100"}, {"hardware": "another", "r_seconds": "7"}]
    text = tables.fast(rows(runs=[old, *seeds], reference=reference))
    assert "**92.00% with test-time augmentation** (n = 2" in text and "90.00% without" in text
    assert "150 s from the first step" in text and "**1.50 R**, where R is 100 s" in text
    assert tables.fast(rows(reference=reference)) == ""
    elsewhere = {**seeds[0], "hardware": "another", "train_seconds": "4"}
    first, second = tables.fast(rows(runs=[old, *seeds, elsewhere], reference=reference)).split("\n\n")
    assert first == text and "**2.00 R**, where R is 7 s" in second


def test_the_clock_of_assignment_plus_ends_with_training() -> None:
    run = {"recipe": "cifar10.assignment_plus", "device": "cpu", "hardware": "a chip", "precision": "bf16"}
    run |= {"epochs": "24", "test_accuracy": "0.95", "test_accuracy_tta": "0.96", "tta_seconds": "50"}
    run |= {"train_seconds": "390", "checkpoint_seconds": "10"}
    text = tables.plus(rows(runs=[run], reference=[{"hardware": "a chip", "r_seconds": "100"}]))
    assert "**95.00% without test-time augmentation**, 96.00% with" in text
    assert "400 s of training" in text and "**4.00 R**" in text
    assert tables.fast(rows(runs=[run])) == ""


def test_an_ablation_is_compared_with_its_seed_and_timed_on_its_chip() -> None:
    keys = ("change", "seed", "hardware", "precision", "accuracy_tta", "calibrated_loss", "train_seconds")
    lines = [
        "as it stands,0,slow,bf16,0.940,0.180,100",
        "as it stands,0,quick,bf16,0.930,0.190,50",
        "without it,0,quick,bf16,0.920,0.200,55",
        "nor that,0,unknown,bf16,0.910,0.215,7",
        "with nothing to compare,1,quick,bf16,0.1,9.0,1",
    ]
    runs = [dict(zip(keys, line.split(","), strict=True)) for line in lines]
    _, _, whole, without, nor, _, chips = tables.ablations(rows(ablations=runs)).splitlines()
    assert whole == "| as it stands | 2 | 93.50%, +0.00 | 0.185, +0.000 | × 1.00 |"
    assert without == "| without it | 1 | 92.00%, -1.50 | 0.200, +0.015 | × 1.10 |"
    assert nor == "| nor that | 1 | 91.00%, -2.50 | 0.215, +0.030 |  |"
    assert chips == "Runs by chip: slow, bf16: 1; quick, bf16: 2; unknown, bf16: 1."


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["evidence"])
def test_a_rows_accuracy_follows_from_its_evidence(row: dict[str, str]) -> None:
    folder = evidence.RUNS / row["evidence"]
    run = Run.open(folder)
    assert run.recipe.name == row["recipe"].partition(",")[0] and len(run.history) == int(row["epochs"])
    assert run.evaluation.accuracy == pytest.approx(float(row["test_accuracy"]), abs=2e-4)  # kept as float16
    assert json.loads((folder / record.SUMMARY).read_text())["peak_lr"] == float(row["peak_lr"])
    assert not (folder / record.PICTURES).exists() and not (folder / record.SAMPLES).exists()


def test_evidence_can_be_drawn_from(tmp_path: Path) -> None:
    shutil.copytree(evidence.RUNS / PUBLISHED[0]["evidence"], tmp_path / "run")
    page = Run.open(tmp_path / "run").report()
    assert page.path.is_file() and (tmp_path / "run" / "figures" / "learning_curves.png").is_file()


def test_a_run_is_published_with_its_row(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    target = evidence.publish(run, "toy-seed0", "a toy")
    (row,) = measure.read_rows(tmp_path / "runs.csv")
    assert (row["evidence"], row["rates"], row["note"]) == ("toy-seed0", "given", "a toy")
    assert (row["recipe"], row["epochs"], row["seed"]) == ("shapes.demo", "2", "0")
    assert float(row["test_low_95"]) < float(row["test_accuracy"]) < float(row["test_high_95"])
    assert Run.open(target).evaluation.accuracy == pytest.approx(float(row["test_accuracy"]), abs=2e-2)
    (group,) = groups(rows(runs=[row]))
    assert group.seconds(tta=True) > group.seconds(tta=False) > 0
    (run / record.SUMMARY).rename(tmp_path / "summary.json")
    with pytest.raises(InputError, match="nothing to publish"):
        evidence.publish(run, "again")
    (tmp_path / "summary.json").rename(run / record.SUMMARY)
