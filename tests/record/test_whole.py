"""Mistakes in the shape of their files: kept by a run, checked before they are shown, and shown uncut."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.data.folder import Folder
from firstlight.errors import InputError
from firstlight.jobs.judge import keep_whole
from firstlight.page import payload
from firstlight.record.run_folder import RunFolder
from firstlight.record.whole import WHOLE, read_whole, write_whole

JPEG = b"\xff\xd8\xff\xe0 a picture"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create("run", tmp_path / "run")


def test_pictures_come_back_by_the_index_of_their_image(folder: RunFolder) -> None:
    pictures = {7: JPEG + b"1", 0: JPEG, 3: JPEG * 50}
    write_whole(folder, pictures)
    assert read_whole(folder, 8) == pictures
    assert read_whole(RunFolder.create("other", folder.path / "other"), 8) == {}


def test_what_is_not_cut_is_not_kept(folder: RunFolder) -> None:
    write_whole(folder, {})
    assert not folder.has(WHOLE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indices": torch.tensor([9])}, "indices"),
        ({"indices": torch.tensor([-1])}, "indices"),
        ({"ends": torch.tensor([10_000])}, "ends"),
        ({"ends": torch.tensor([-5])}, "ends"),
        ({"ends": torch.tensor([4, 2])}, "ends"),
        (
            {"bytes": torch.tensor([*b"<svg onload=x>"], dtype=torch.uint8), "ends": torch.tensor([14])},
            "JPEG",
        ),
        ({"bytes": torch.zeros(20)}, "bytes"),
    ],
)
def test_what_a_stranger_put_there_is_refused(folder: RunFolder, change: dict[str, Any], words: str) -> None:
    good = {
        "indices": torch.tensor([0]),
        "ends": torch.tensor([len(JPEG)]),
        "bytes": torch.tensor([*JPEG], dtype=torch.uint8),
    }
    folder.write_tensors(WHOLE, {**good, **change})
    with pytest.raises(InputError, match=words):
        read_whole(folder, 5)


def test_ends_that_go_back_are_refused(folder: RunFolder) -> None:
    parts = {"indices": torch.tensor([0, 1]), "ends": torch.tensor([len(JPEG), 3])}
    folder.write_tensors(WHOLE, {**parts, "bytes": torch.tensor([*JPEG], dtype=torch.uint8)})
    with pytest.raises(InputError, match="damaged"):
        read_whole(folder, 5)


def test_mistakes_are_kept_whole_unless_they_are_square_or_gone(
    tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    shapes = {
        "a/wide.png": (600, 200),
        "a/square.png": (90, 90),
        "b/tall.png": (50, 80),
        "b/gone.png": (9, 40),
    }
    for number, (name, size) in enumerate(shapes.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * number, 90, 120)).save(path)
    names = [*shapes]
    data = Folder(tmp_path / "photos")
    job = SimpleNamespace(recipe=SimpleNamespace(data=data), data_dir=None)
    (tmp_path / "photos" / "b" / "gone.png").unlink()
    evaluation = SimpleNamespace(mistakes=torch.tensor([3, 2, 1, 0]), names=names)
    keep_whole(job, evaluation, SimpleNamespace(folder=folder))  # type: ignore[arg-type]
    kept = read_whole(folder, 4)
    sizes = {index: Image.open(io.BytesIO(data)).size for index, data in kept.items()}
    assert sizes == {0: (240, 80), 2: (50, 80)}
    assert np.asarray(Image.open(io.BytesIO(kept[2]))).mean((0, 1)).tolist() == pytest.approx(
        [80, 90, 120], abs=3
    )
    listed = payload.whole(kept, SimpleNamespace(items={"index": [2, 1]}))  # type: ignore[arg-type]
    assert bool(listed[0]) and not listed[1]


def test_a_source_without_files_keeps_nothing(folder: RunFolder) -> None:
    job = SimpleNamespace(recipe=SimpleNamespace(data=object()), data_dir=None)
    keep_whole(job, SimpleNamespace(), SimpleNamespace(folder=folder))  # type: ignore[arg-type]
    assert not folder.has(WHOLE)
