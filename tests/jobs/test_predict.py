"""Prediction at scale: bounded, whole or not at all, and never ended by one bad file."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import firstlight
from firstlight.cli import main
from firstlight.data.images import DataFacts
from firstlight.errors import InputError
from firstlight.insight import prediction
from firstlight.insight.prediction import Prediction, Unreadable, predictions
from firstlight.jobs.predict import folder_names, predict_files
from firstlight.run import open_run


def in_shell(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in two folders, two of one name; a broken one, an empty one, and a file that is none."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "photos"
    for name in ("a/1.png", "a/2.png", "a/10.png", "b/1.png", "b/odd, name\n.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    (folder / "a/broken.png").write_bytes((folder / "a/1.png").read_bytes()[:200])
    (folder / "b/empty.jpg").touch()
    (folder / "b/notes.txt").write_text("no picture")
    return folder


ORDER = ["a/1.png", "a/2.png", "a/10.png", "a/broken.png", "b/1.png", "b/empty.jpg", "b/odd, name\n.png"]
BROKEN = {"a/broken.png", "b/empty.jpg"}


def test_the_table_has_a_row_for_each_file_with_the_numbers_of_predict(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, errors = in_shell(capsys, "predict", trained, photos, "--csv", tmp_path / "out.csv")
    assert code == 2 and "5 files classified" in said and "out.csv" in said
    assert "broken.png" in errors and "empty.jpg" in errors and "notes" not in errors
    with (tmp_path / "out.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [Path(row["file"]).relative_to(photos).as_posix() for row in rows] == ORDER
    run = open_run(trained)
    for row, name in zip(rows, ORDER, strict=True):
        if name in BROKEN:
            assert row["error"] and not row["label"], row
            continue
        (alone,) = run.predict(photos / name)
        assert (row["label"], row["error"]) == (alone.label, "")
        assert {key: float(row[f"p_{key}"]) for key in run.data.classes} == pytest.approx(
            alone.probabilities, abs=1e-6
        )
    code, _, errors = in_shell(capsys, "predict", trained, photos, "--csv", tmp_path / "out.csv")
    assert code == 2 and "is there already" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "photos"]


def test_lines_of_json_say_the_same(trained: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = in_shell(capsys, "predict", trained, photos, "--json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert code == 2 and [Path(line["file"]).relative_to(photos).as_posix() for line in lines] == ORDER
    assert {Path(line["file"]).name for line in lines if "error" in line} == {"broken.png", "empty.jpg"}
    good = next(line for line in lines if "error" not in line)
    (alone,) = open_run(trained).predict(good["file"])
    assert good["probabilities"] == pytest.approx(alone.probabilities, abs=1e-6)
    assert list(good["probabilities"]) == list(alone.probabilities), "the highest first"


def test_sorted_copies_lose_and_overwrite_nothing(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    # One class for all: both files named 1.png meet in its folder.
    classes = open_run(trained).data.classes
    monkeypatch.setattr(Prediction, "label", property(lambda self: classes[1]))
    result = predict_files(trained, photos, sort=tmp_path / "sorted")
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "sorted").iterdir()) == sorted(folder_names(classes))
    copies = list((tmp_path / "sorted" / folder_names(classes)[1]).iterdir())
    assert {path.name for path in copies} == {"1.png", "1-2.png", "2.png", "10.png", "odd, name\n.png"}
    good = sorted(data for path, data in before.items() if path.relative_to(photos).as_posix() in
                  set(ORDER) - BROKEN)  # fmt: skip
    assert sorted(path.read_bytes() for path in copies) == good
    assert result.count == 5 and len(result.unreadable) == 2
    with pytest.raises(InputError, match="not empty"):
        predict_files(trained, photos, sort=tmp_path / "sorted")
    with pytest.raises(InputError, match="lies in"):
        predict_files(trained, photos, sort=photos / "sorted")


def test_a_stop_leaves_neither_table_nor_folder(trained: Path, photos: Path, tmp_path: Path) -> None:
    def stop(answer: object) -> None:
        raise KeyboardInterrupt

    out = {"csv": tmp_path / "out.csv", "sort": tmp_path / "sorted"}
    with pytest.raises(KeyboardInterrupt):
        predict_files(trained, photos, each=stop, **out)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_names_of_classes_lead_nowhere_else() -> None:
    assert folder_names(["../x", "a/b", "a_b", "A_B", "..", "con. "]) == [
        *(".._x", "a_b", "a_b-2", "A_B-3", "_", "con"),
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_ends_predict_in_python(trained: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="broken"):
        firstlight.predict(trained, photos)
    with pytest.raises(InputError, match="no image"):
        firstlight.predict(trained, [])
    (photos.parent / "none").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        firstlight.predict(trained, photos.parent / "none")


def test_only_a_few_batches_are_held_and_reading_goes_on_beside_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 10)
    reads, ahead, lock = 0, [], threading.Lock()

    def read(path: Path) -> torch.Tensor:
        nonlocal reads
        with lock:
            reads += 1
        if path.name == "7":
            raise InputError("7 is broken")
        return torch.full((1, 2, 2), int(path.name) % 256, dtype=torch.uint8)

    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert len(images) <= 10
            return torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1)

    facts = DataFacts(("bright", "dark"), (1, 2, 2), (0.5,), (0.5,))
    answers = []
    for answer in predictions(Mean(), [Path(str(number)) for number in range(200)], facts, read):
        answers.append(answer)
        ahead.append(reads - len(answers))
    assert [answer.path.name for answer in answers] == [str(number) for number in range(200)]
    assert [answer.path.name for answer in answers if isinstance(answer, Unreadable)] == ["7"]
    assert answers[0].label == "dark" and answers[199].label == "bright"  # type: ignore[union-attr]
    assert max(ahead) <= 3 * 10 and reads == 200
