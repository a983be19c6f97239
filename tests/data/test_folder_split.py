"""Copies, near copies and bursts stay on one side of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from folders import scene
from PIL import Image, ImageOps

from firstlight.data import folder_picture
from firstlight.data.folder import Folder
from firstlight.data.image_files import open_upright


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a cache of its own."""
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


def bursts(root: Path) -> Path:
    """Write two classes, each of ten scenes in three versions that are nearly the same."""
    changes: tuple[Callable[[Image.Image], Image.Image], ...] = (
        lambda picture: picture,
        lambda picture: picture.crop((4, 3, 252, 189)),
        ImageOps.mirror,
    )
    for first, label in enumerate(("cat", "dog")):
        (root / label).mkdir(parents=True)
        for number in range(10):
            for version, change in enumerate(changes):
                change(scene(100 * first + number)).save(
                    root / label / f"{version} {number}.jpg", quality=90 - 20 * version
                )
    return root


def scenes_of(names: list[str]) -> set[str]:
    return {f"{name.split('/')[0]} {name.split()[1]}" for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_a_burst_is_on_one_side(tmp_path: Path, seed: int) -> None:
    train, test = Folder(bursts(tmp_path), seed=seed).load()
    assert not scenes_of(train.names) & scenes_of(test.names)
    assert len(test) == 12 and len(train) == 48


def test_the_same_bursts_give_the_same_split(tmp_path: Path) -> None:
    first, second = (Folder(bursts(tmp_path / name)).load()[1].names for name in ("one", "two"))
    assert list(first) == list(second)


def test_a_mirror_image_in_another_class_may_be_on_the_other_side(tmp_path: Path) -> None:
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
    for number in range(10):
        scene(number).save(tmp_path / "left" / f"{number}.png")
        ImageOps.mirror(scene(number)).save(tmp_path / "right" / f"{number}.png")
    sides = [set(Folder(tmp_path, seed=seed).load()[1].names) for seed in range(3)]
    pairs = [(f"left/{number}.png" in test) == (f"right/{number}.png" in test)
             for test in sides for number in range(10)]  # fmt: skip
    assert not all(pairs)


def test_a_class_whose_pictures_all_look_alike_is_divided_and_said(tmp_path: Path) -> None:
    root = bursts(tmp_path)
    (root / "owl").mkdir()
    for number in range(5):
        scene(900).save(root / "owl" / f"{number}.jpg", quality=90 - 5 * number)
    train, test = Folder(root).load()
    assert [name for name in test.names if name.startswith("owl")] and not {*train.names} & {*test.names}
    assert "near copies are in training and test: all pictures of owl look alike" in train.notes


def test_a_picture_is_decoded_once_for_pixels_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def read(path: Path, side: int) -> Image.Image:
        names.append(str(path))
        return open_upright(path, side)

    monkeypatch.setattr(folder_picture, "open_upright", read)
    Folder(bursts(tmp_path)).load()
    assert len(names) == len({*names}) == 60
