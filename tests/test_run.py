"""Two run folders compared, in a notebook and in a shell."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import image_set
from torch import nn

import firstlight
from firstlight.cli import main
from firstlight.data.folder import Folder
from firstlight.data.images import DataFacts, ImageSet
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.recipes import named
from firstlight.record.record import ENVIRONMENT, MISTAKES, PREDICTIONS, Record
from firstlight.run import Run

IMAGES = image_set(40)
RUNS = Path(__file__).parents[1] / "benchmarks" / "runs"


def run_folder(path: Path, wrong: dict[int, int], images: ImageSet = IMAGES, digest: str = "d" * 64) -> Path:
    """A run folder whose network calls these images these classes, and has all others right."""
    predictions = images.labels.clone()
    for index, predicted in wrong.items():
        predictions[index] = predicted
    evaluation = Evaluation(images.classes, images.labels, torch.eye(4)[predictions], images.names)
    record = Record.create("", path)
    data = {key: list(getattr(images, key)) for key in ("classes", "shape", "mean", "std")}
    environment = {"data": data | {"test_sha256": digest}}
    record.begin(named("shapes.demo"), None, environment, {"images": images.images[:1]})
    record.write_evaluation(evaluation, evaluation, images)
    return path


def renamed(prefix: str) -> ImageSet:
    return dataclasses.replace(IMAGES, names=[f"{prefix}/{name}" for name in IMAGES.names])


def in_shell(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_names_come_from_the_table_of_the_run_that_has_the_image_wrong(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "first", {3: 0, 10: 1, 20: 2}, renamed("one"))
    second = run_folder(tmp_path / "second", {10: 3, 21: 2}, renamed("two"))
    found = firstlight.compare(first, firstlight.open_run(second))
    assert (found.fixed.tolist(), found.broken.tolist(), found.still_wrong.tolist()) == ([3, 20], [21], [10])
    assert [(change.name, change.true, change.before, change.after) for change in found.changes()] == [
        ("one/image 3", 3, 0, 3),
        ("one/image 20", 0, 2, 0),
        ("two/image 21", 1, 1, 2),
    ]


def test_run_folders_of_the_first_version_open_report_and_compare(tmp_path: Path) -> None:
    folders = [
        shutil.copytree(RUNS / name, tmp_path / name) for name in ("assignment-plus-seed1", "fast-seed0")
    ]
    for folder in folders:
        assert json.loads((folder / "recipe.json").read_text())["schema"] == 1
        run = firstlight.open_run(folder)
        assert run.summary.test_accuracy == run.evaluation.accuracy > 0.9 and len(run.history)
        assert f"{run.summary.test_accuracy:.2%}" in run.report().path.read_text()
    assert len(firstlight.compare(*folders).before.labels) == 10_000


def test_the_shell_prints_the_sentences_and_the_changed_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_folder(tmp_path / "first", {3: 0, 10: 1})
    second = run_folder(tmp_path / "second", {10: 1, 21: 2})
    code, said, _ = in_shell(capsys, "compare", first, second)
    assert code == 0
    *sentences, heading, row_fixed, row_broken = said.splitlines()
    assert sentences == str(firstlight.compare(first, second)).splitlines()
    assert sentences[0].startswith("no difference beyond noise")
    assert heading.startswith("The changed images, each with its label")
    assert [row.split(maxsplit=2) for row in (row_fixed, row_broken)] == [
        ["fixed", "3", "image 3  class 3: class 0, then class 3"],
        ["broken", "21", "image 21  class 1: class 1, then class 2"],
    ]


def test_a_better_run_is_called_better_and_a_long_list_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_folder(tmp_path / "first", {index: (index + 1) % 4 for index in range(30)})
    second = run_folder(tmp_path / "second", {})
    _, said, _ = in_shell(capsys, "compare", first, second, "--count", 5)
    lines = said.splitlines()
    assert lines[0].startswith("the second is better: 25.00% and 100.00% of 40 images are right")
    assert [line.split()[1] for line in lines[-6:-1]] == list("01234")
    assert lines[-1] == "and 25 more (--count 30 lists them all)"


def test_runs_on_other_data_or_classes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run_folder(tmp_path / "one", {})
    other_data = run_folder(tmp_path / "data", {}, digest="e" * 64)
    other_classes = run_folder(tmp_path / "classes", {}, dataclasses.replace(IMAGES, classes=tuple("wxyz")))
    with pytest.raises(InputError, match="judged on different test images"):
        firstlight.compare(one, other_data)
    with pytest.raises(InputError, match="different classes"):
        firstlight.compare(one, other_classes)
    code, said, error = in_shell(capsys, "compare", one, other_data)
    assert (code, said) == (2, "") and "different test images" in error and "same data" in error
    code, _, error = in_shell(capsys, "compare", one, tmp_path / "nowhere")
    assert code == 2 and "there is no run folder" in error


def test_a_run_without_predictions_or_table_is_met_with_words_or_places(tmp_path: Path) -> None:
    one, other = run_folder(tmp_path / "one", {5: 0}), run_folder(tmp_path / "other", {6: 0})
    (one / MISTAKES).unlink()
    (other / MISTAKES).write_text("index,name\n6,six\nmany,x\n-6,y\n99,far\n")
    assert [change.name for change in firstlight.compare(one, other).changes()] == ["#5", "six"]
    (one / PREDICTIONS).unlink()
    with pytest.raises(InputError, match="keeps no predictions"):
        firstlight.compare(one, other)


def test_without_any_hash_the_labels_decide(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", {})
    other = run_folder(tmp_path / "other", {}, dataclasses.replace(IMAGES, labels=IMAGES.labels.flip(0)))
    for path in (one, other):
        values = json.loads((path / ENVIRONMENT).read_text())
        del values["data"]["test_sha256"]
        (path / ENVIRONMENT).write_text(json.dumps(values))
    assert firstlight.compare(one, one).difference == 0
    with pytest.raises(InputError, match="different labels at 40 of 40 images"):
        firstlight.compare(one, other)


def test_predict_reads_pictures_as_training_did(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def read(path: Path, shape: tuple[int, int, int], fit: str) -> torch.Tensor:
        seen.append(fit)
        return torch.zeros(shape, dtype=torch.uint8)

    monkeypatch.setattr("firstlight.run.read_image", read)
    facts = DataFacts(("a", "b"), (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for data in (Folder(path="photos", fit="pad"), Shapes()):
        run = Run.__new__(Run)
        recipe = dataclasses.replace(named("shapes.demo"), data=data)
        run.__dict__ |= {"recipe": recipe, "data": facts, "model": model}
        run.predict("some.png")
    assert seen == ["pad", "crop"]


def test_the_copy_that_predicts_is_made_once_and_follows_the_weights(trained: Path, tmp_path: Path) -> None:
    run, picture = Run.open(trained), tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (90, 120, 150)).save(picture)
    (before,) = run.predict(picture)
    copy = run._copies.of(run.model)
    run.predict(picture)
    assert run._copies.of(run.model) is copy is not run.model
    with torch.no_grad():
        run.model.linear.weight.neg_()  # type: ignore[union-attr,operator]
    (after,) = run.predict(picture)
    assert after.probabilities != before.probabilities
    assert run._copies.of(run.model) is not copy
