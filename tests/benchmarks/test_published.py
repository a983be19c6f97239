"""What is published: README numbers come from rows, and rows from evidence that can be opened."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from firstlight.record import record
from firstlight.record.run_folder import RunFolder
from firstlight.run import Run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results.csv"


def rows() -> list[dict[str, str]]:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("tables")
    finally:
        sys.path.pop(0)


def test_the_readme_says_what_the_rows_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "number"),
    [
        ("README.md", r"(<!-- accuracy -->\*\*)\d"),
        ("README.md", r"(<!-- analysis -->[^<]*What it confuses\.\*\* )\d"),
        ("docs/page.md", r"(<!-- pointing -->[^<]*\| Grad-CAM \| 8×8 \| \d \| )\d"),
        ("docs/page.md", r"(<!-- suspects -->[^<]*\| firstlight \| )\d"),
        ("docs/fast.md", r"(<!-- fast -->[^<]*\*\*)\d"),
        ("docs/fast.md", r"(<!-- plus -->[^<]*\*\*)\d"),
        ("docs/fast.md", r"(<!-- ablations -->[^<]*\| as it stands \| \d \| )\d"),
    ],
)
def test_a_changed_number_on_a_page_is_noticed(page: str, number: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    altered = re.sub(number, r"\g<1>8", text, count=1)
    assert altered != text and tables().filled(altered, rows()) == text


def test_the_clock_of_the_fast_recipe_runs_to_the_last_view_and_its_older_versions_do_not_count() -> None:
    run = {"recipe": "cifar10.fast", "device": "cpu", "hardware": "a chip", "precision": "bf16"}
    old = {**run, "epochs": "8", "test_accuracy": "0.5", "test_accuracy_tta": "0.5"}
    new = {**run, "epochs": "10", "test_accuracy": "0.90", "checkpoint_seconds": "1.5", "tta_seconds": "8.5"}
    seeds = [
        {**new, "test_accuracy_tta": "0.91", "train_seconds": "130"},
        {**new, "test_accuracy_tta": "0.93", "train_seconds": "150"},
    ]
    yardsticks = [{"hardware": "a chip", "r_seconds": "100"}, {"hardware": "another", "r_seconds": "7"}]
    said = tables().fast([old, *seeds, *yardsticks])
    assert "**92.00% with test-time augmentation** (n = 2" in said and "90.00% without" in said
    assert "150 s from the first step" in said and "**1.50 R**" in said and "(100 s)" in said
    assert tables().fast(yardsticks) == ""
    elsewhere = {**seeds[0], "hardware": "another", "train_seconds": "4"}
    first, second = tables().fast([old, *seeds, elsewhere, *yardsticks]).split("\n\n")
    assert first == said and "**2.00 R**" in second and "(7 s)" in second


def test_the_clock_of_assignment_plus_ends_with_training() -> None:
    run = {"recipe": "cifar10.assignment_plus", "device": "cpu", "hardware": "a chip", "precision": "bf16"}
    run |= {"epochs": "24", "test_accuracy": "0.95", "test_accuracy_tta": "0.96", "tta_seconds": "50"}
    run |= {"train_seconds": "390", "checkpoint_seconds": "10"}
    said = tables().plus([run, {"hardware": "a chip", "r_seconds": "100"}])
    assert "**95.00% without test-time augmentation**, 96.00% with" in said
    assert "400 s of training" in said and "**4.00 R**" in said
    assert tables().fast([run]) == ""


def test_an_ablation_is_compared_with_its_seed_and_timed_on_its_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tables()
    head = "note,change,seed,hardware,precision,accuracy_tta,calibrated_loss,train_seconds"
    lines = [
        "ablation,as it stands,0,slow,bf16,0.940,0.180,100",
        "ablation,as it stands,0,quick,bf16,0.930,0.190,50",
        "ablation,without it,0,quick,bf16,0.920,0.200,55",
        "ablation,nor that,0,unknown,bf16,0.910,0.215,7",
        "ablation,with nothing to compare,1,quick,bf16,0.1,9.0,1",
        ",something else,0,quick,bf16,0.1,9.0,1",
    ]
    (tmp_path / "choices.csv").write_text("\n".join([head, *lines]))
    monkeypatch.setattr(module, "CHOICES", tmp_path / "choices.csv")
    _, _, whole, without, nor, _, chips = module.ablations([]).splitlines()
    assert whole == "| as it stands | 2 | 93.50%, +0.00 | 0.185, +0.000 | × 1.00 |"
    assert without == "| without it | 1 | 92.00%, -1.50 | 0.200, +0.015 | × 1.10 |"
    assert nor == "| nor that | 1 | 91.00%, -2.50 | 0.215, +0.030 |  |"
    assert chips == "Runs by chip: slow, bf16: 1; quick, bf16: 2; unknown, bf16: 1."


@pytest.mark.parametrize(
    "row", [row for row in rows() if row.get("evidence")], ids=lambda row: row["evidence"]
)
def test_a_rows_accuracy_follows_from_its_evidence(row: dict[str, str], tmp_path: Path) -> None:
    folder = ROOT / "benchmarks" / "runs" / row["evidence"]
    run = Run.open(folder)
    assert run.recipe.name == row["recipe"] and len(run.history) == int(row["epochs"])
    assert run.evaluation.accuracy == pytest.approx(float(row["test_accuracy"]), abs=2e-4)  # kept as float16
    assert json.loads((folder / record.SUMMARY).read_text())["peak_lr"] == float(row["peak_lr"])
    assert not (folder / record.PICTURES).exists() and not (folder / record.SAMPLES).exists()


def test_evidence_can_be_drawn_from(tmp_path: Path) -> None:
    import shutil

    names = [row["evidence"] for row in rows() if row.get("evidence")]
    shutil.copytree(ROOT / "benchmarks" / "runs" / names[0], tmp_path / "run")
    page = Run(RunFolder.open(tmp_path / "run")).report()
    assert page.path.is_file() and (tmp_path / "run" / "figures" / "learning_curves.png").is_file()
