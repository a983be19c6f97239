"""The command line as a person meets it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SMALL = [
    "--set",
    "train=120",
    "--set",
    "test=40",
    "--set",
    "width=2",
    "--set",
    "batch_size=40",
    "--epochs",
    "2",
]
GIVEN = ["--set", "peak_lr=0.1", "--set", "min_lr=0.001"]


def firstlight(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "firstlight.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made by the shell."""
    place = tmp_path_factory.mktemp("shell")
    done = firstlight("train", "shapes.demo", *SMALL, *GIVEN, "--precision", "fp32", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "test accuracy" in done.stdout and "95 % interval" in done.stdout and "epoch 2/2" in done.stdout
    assert "about" in done.stdout.split("epoch 1/2")[0], "it says how long it will take before it starts"
    assert "✓" in done.stdout and "checkpoints of 0.1 MB took" in done.stdout
    return place / "runs" / "shapes.demo"


def test_train_leaves_a_whole_run_folder(trained: Path) -> None:
    pictures = {path.name for path in (trained / "figures").iterdir()}
    assert {
        "learning_curves.png",
        "augmentations.png",
        "confusion.png",
        "misclassified.png",
        "gradcam.png",
    } == pictures
    assert (trained / "report.html").is_file()
    assert not (trained / "checkpoints").exists()
    assert not [path for path in trained.rglob(".*")], "no file that was written aside is left"
    summary = json.loads((trained / "summary.json").read_text())
    asked = (
        "recipe seed epochs test_accuracy test_accuracy_tta test_interval_95 train_accuracy peak_lr min_lr "
    )
    asked += "train_seconds wall_seconds parameters device precision torch"
    assert set(asked.split()) <= set(summary)
    assert (summary["recipe"], summary["epochs"], summary["peak_lr"]) == ("shapes.demo", 2, 0.1)
    assert summary["wall_seconds"] >= summary["train_seconds"] > 0
    rows = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[-1]["lr"] == 0.001
    assert rows[-1]["test_accuracy"] == summary["test_accuracy"]


def test_evaluate_says_the_same_as_the_run(trained: Path) -> None:
    done = firstlight("evaluate", trained, "--precision", "fp32", cwd=trained)
    accuracy = json.loads((trained / "summary.json").read_text())["test_accuracy"]
    assert done.returncode == 0, done.stderr
    assert f"accuracy {accuracy:.2%} without TTA" in done.stdout


def test_predict_names_the_class_of_files(trained: Path, tmp_path: Path) -> None:
    for name, colour in (("red.png", (200, 0, 0)), ("green.jpg", (0, 200, 0))):
        Image.new("RGB", (50, 40), colour).save(tmp_path / name)
    done = firstlight("predict", trained, tmp_path / "red.png", tmp_path / "green.jpg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].count("%") == 3 and "green.jpg" in lines[1]


def test_report_draws_again_from_the_folder_alone(trained: Path) -> None:
    (trained / "report.html").unlink()
    done = firstlight("report", trained, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == trained / "report.html" and (trained / "report.html").is_file()


def test_recipes_lists_and_shows_the_specification(tmp_path: Path) -> None:
    listed = firstlight("recipes", cwd=tmp_path)
    assert "cifar10.assignment" in listed.stdout and "shapes.demo" in listed.stdout
    shown = firstlight("recipes", "cifar10.assignment", cwd=tmp_path).stdout
    for said in (
        "6,573,120",
        "512×4×4",
        "RandomCrop 32×32 after padding of 4 → FlipLR → CutOut 8×8",
        "batch size 512",
        "24 epochs",
        "end of epoch 5",
        "no annihilation",
        "weight_decay        0.0005",
        "padding",
    ):
        assert said in shown, said
    assert "✗" not in shown


BAD = [
    (["trian"], "train"),
    (["train", "cifar10.assignement"], "cifar10.assignment"),
    (["train", "shapes.demo", "--set", "peek_lr=1"], "peak_lr"),
    (["train", "shapes.demo", "--set", "peak_lr=high"], "takes a number"),
    (["train", "shapes.demo", "--set", "peak_lr"], "KEY=VALUE"),
    (["train", "shapes.demo", "--epochs", "0"], "epochs must be at least 1"),
    (["train", "shapes.demo", "--epochs", "few"], "not a valid integer"),
    (["train", "shapes.demo", "--set", "peak_epoch=30"], "outside the 24 epochs"),
    (["train", "shapes.demo", "--set", "train=100"], "larger than the 100 training images"),
    (["train", "shapes.demo", "--out", "."], "exists already"),
    (["train", "shapes.demo", "--device", "tpu"], "unknown device"),
    (["train", "shapes.demo", "--precision", "int8"], "unknown precision"),
    (["train", "cifar10.assignment", "--data-dir", "."], "CIFAR-10"),
    (["train", "cifar10.assignment", "--data-dir", "nowhere"], "nowhere"),
    (["train"], "RECIPE"),
    (["train", "shapes.demo", "--fast"], "--fast"),
    (["find-lr", "shapes.dmo"], "shapes.demo"),
    (["evaluate", "nowhere"], "there is no run folder"),
    (["report", "."], "is no run folder"),
    (["recipes", "shapes"], "shapes.demo"),
]


@pytest.mark.parametrize(
    ("words", "said"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_a_hint_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path
) -> None:
    done = firstlight(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_an_unreadable_image_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    done = firstlight("predict", trained, tmp_path / "notes.jpg", cwd=tmp_path)
    assert done.returncode == 2 and "notes.jpg" in done.stderr and "Traceback" not in done.stderr


def test_a_run_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"schema": 999, "recipe": {}}')
    done = firstlight("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "version 999" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = firstlight("train", "nothing", "--debug", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_rate(tmp_path: Path) -> None:
    settings = [*SMALL, "--set", "peak_lr=1e30", "--set", "min_lr=1e29", "--precision", "fp32"]
    done = firstlight("train", "shapes.demo", *settings, cwd=tmp_path)
    assert done.returncode == 1
    assert "stopped being finite at step" in done.stderr and "learning rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom firstlight.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for verb in ("train", "find-lr", "evaluate", "predict", "report", "recipes"):
        assert verb in done.stdout
