"""The notebook's front door: the same verbs as in the shell, and names that load only when used."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import firstlight
from firstlight.recipes import RECIPES


def test_every_name_at_the_door_opens() -> None:
    for name in firstlight.__all__:
        assert getattr(firstlight, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        firstlight.trian  # noqa: B018 - looking is what is tested


def test_rooms_that_are_verbs_can_be_called() -> None:
    assert set(firstlight.recipes.table()) == set(RECIPES)
    assert firstlight.recipes.named("shapes.demo").name == "shapes.demo"


def test_one_cell_trains_shows_and_predicts(tmp_path: Path) -> None:
    settings = {"train": 120, "test": 40, "width": 2, "batch_size": 40, "peak_lr": 0.1, "min_lr": 0.001}
    options = {"epochs": 1, "precision": "fp32", "quiet": True}
    run = firstlight.train("shapes.demo", out=tmp_path / "run", **options, **settings)
    shown = [run.learning_curves(), run.augmentations(), run.confusion(), run.misclassified(), run.gradcam()]
    assert all(figure._repr_mimebundle_()[0]["image/png"][:4] == b"\x89PNG" for figure in shown)
    with pytest.raises(firstlight.InputError, match="rates were given"):
        run.lr_finder()
    Image.new("RGB", (20, 30), (9, 99, 199)).save(tmp_path / "blue.png")
    (prediction,) = firstlight.predict(tmp_path / "run", tmp_path / "blue.png")
    assert prediction.label in run.data.classes
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert firstlight.report(run).path == tmp_path / "run" / "report.html"
    accuracy = firstlight.evaluate(run, precision="fp32").accuracy
    assert accuracy == run.summary.test_accuracy == firstlight.open_run(run.path).evaluation.accuracy
