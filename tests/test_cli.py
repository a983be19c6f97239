"""The command line as a person meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from firstlight.cli import main

SMALL = "train=120 test=40 width=2 batch_size=40 peak_lr=0.1 min_lr=0.001"
SETTINGS = ["--epochs", "2", *[word for setting in SMALL.split() for word in ("--set", setting)]]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def firstlight(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, which has loaded torch."""

    def call(*words: object) -> Answer:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return Answer(int(end.value.code or 0), *capsys.readouterr())

    return call


def shell(cwd: Path, *words: str) -> Answer:
    command = [sys.executable, "-W", "error", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_train_leaves_a_whole_run_folder(tmp_path: Path) -> None:
    words = ("train", "shapes.demo", *SETTINGS, "--precision", "fp32")
    answer = shell(tmp_path, "-m", "firstlight", *words)
    assert (answer.code, answer.err) == (0, "")
    assert "test accuracy" in answer.out and "95 % interval" in answer.out and "epoch 2/2" in answer.out
    assert "about" in answer.out.split("epoch 1/2")[0], "it says how long it will take before it starts"
    assert "✓" in answer.out and "checkpoints of 0.1 MB took" in answer.out
    trained = tmp_path / "runs" / "shapes.demo"
    pictures = {path.stem for path in (trained / "figures").iterdir()}
    assert pictures == {"learning_curves", "augmentations", "confusion", "misclassified", "gradcam"}
    assert (trained / "report.html").is_file() and not (trained / "checkpoints").exists()
    assert not list(tmp_path.rglob(".*")), "neither the lock nor a file that was written aside is left"
    summary = json.loads((trained / "summary.json").read_text())
    assert None not in (summary["test_accuracy_tta"], summary["test_interval_95"], summary["torch"])
    assert (summary["recipe"], summary["epochs"], summary["peak_lr"]) == ("shapes.demo", 2, 0.1)
    assert summary["wall_seconds"] >= summary["train_seconds"] > 0
    rows = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[-1]["lr"] == 0.001
    assert rows[-1]["test_accuracy"] == summary["test_accuracy"]


def test_evaluate_says_the_same_as_the_run(trained: Path, firstlight: Command) -> None:
    answer = firstlight("evaluate", trained, "--precision", "fp32")
    accuracy = json.loads((trained / "summary.json").read_text())["test_accuracy"]
    assert answer.code == 0 and f"accuracy {accuracy:.2%} without TTA" in answer.out, answer.err


def test_predict_names_the_class_of_files(trained: Path, tmp_path: Path, firstlight: Command) -> None:
    for name, colour in (("red.png", (200, 0, 0)), ("green.jpg", (0, 200, 0))):
        Image.new("RGB", (50, 40), colour).save(tmp_path / name)
    answer = firstlight("predict", trained, tmp_path / "red.png", tmp_path / "green.jpg")
    lines = answer.out.splitlines()
    assert answer.code == 0 and len(lines) == 2 and lines[0].count("%") == 3 and "green.jpg" in lines[1]
    (tmp_path / "notes.jpg").write_text("no picture")
    answer = firstlight("predict", trained, tmp_path / "notes.jpg")
    assert answer.code == 2 and "notes.jpg" in answer.err


def test_report_draws_again_from_the_folder_alone(trained: Path, tmp_path: Path, firstlight: Command) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "report.html").unlink()
    answer = firstlight("report", run)
    assert answer.code == 0 and Path(answer.out.strip()) == run / "report.html", answer.err
    assert (run / "report.html").is_file()
    (run / "recipe.json").write_text('{"schema": 999, "recipe": {}}')
    answer = firstlight("report", run)
    assert answer.code == 2 and "version 999" in answer.err


def test_recipes_lists_and_shows_the_specification(firstlight: Command) -> None:
    table = firstlight("recipes").out
    assert "cifar10.assignment" in table and "shapes.demo" in table
    specification = firstlight("recipes", "cifar10.assignment").out
    crop = "RandomCrop 32×32 after padding of 4 → FlipLR → CutOut 8×8"
    numbers = ("6,573,120", "512×4×4", "batch size 512", "24 epochs", "end of epoch 5", "no annihilation")
    for words in (crop, *numbers, "weight_decay        0.0005", "padding"):
        assert words in specification, words
    assert "✗" not in specification


BAD = [
    (["trian"], "train"),
    (["train", "cifar10.assignement"], "cifar10.assignment"),
    (["train", "shapes.demo", "--set", "peek_lr=1"], "peak_lr"),
    (["train", "shapes.demo", "--set", "peak_lr=high"], "takes a number"),
    (["train", "shapes.demo", "--set", "peak_lr"], "KEY=VALUE"),
    (["train", "shapes.demo", "--epochs", "0"], "epochs must be at least 1"),
    (["train", "shapes.demo", "--epochs", "few"], "not a valid integer"),
    (["train", "shapes.demo", "--set", "peak_epoch=30"], "outside the 24 epochs"),
    (["train", "shapes.demo", "--seeds", "0"], "seeds takes a whole number of at least 1, not 0"),
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


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line_and_a_hint_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, firstlight: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = firstlight(*words)
    assert (answer.code, answer.out) == (2, "") and message in answer.err
    assert 1 <= len(answer.err.strip().splitlines()) <= 2 and not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for words in (["train", "nothing", "--debug"], ["train", "nothing"]):
        answer = shell(tmp_path, "-m", "firstlight", *words)
        assert answer.code and ("Traceback" in answer.err) is ("--debug" in words)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_rate(
    tmp_path: Path, firstlight: Command
) -> None:
    rates = ["--set", "peak_lr=1e30", "--set", "min_lr=1e29", "--precision", "fp32"]
    answer = firstlight("train", "shapes.demo", *SETTINGS, *rates, "--out", tmp_path / "run")
    assert (
        answer.code == 1
        and "training diverged" in answer.err
        and "at step" in answer.err
        and "learning rate" in answer.err
    )


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom firstlight.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    answer = shell(tmp_path, "-c", code)
    assert answer.code == 0, answer.err
    for verb in ("train", "find-lr", "evaluate", "predict", "report", "recipes"):
        assert verb in answer.out
