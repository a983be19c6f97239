"""Run folders: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.errors import InputError
from firstlight.record.run_folder import RECIPE, RunFolder, write_atomic
from firstlight.record.summary import Summary


def test_names_are_numbered_when_taken(tmp_path: Path) -> None:
    made = [RunFolder.create("shapes.demo", root=tmp_path / "runs").path.name for _ in range(3)]
    assert made == ["shapes.demo", "shapes.demo-2", "shapes.demo-3"]


def test_an_explicit_folder_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="exists already"):
        RunFolder.create("shapes.demo", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(InputError, match="cannot make the run folder"):
        RunFolder.create("shapes.demo", tmp_path / "mine" / "thesis.txt" / "run")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "summary.json", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "summary.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"


def test_tensors_come_back_as_they_were_even_shared_or_channels_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    image = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    folder.write_tensors("x.safetensors", {"image": image, "again": image})
    back = folder.read_tensors("x.safetensors")
    assert torch.equal(back["image"], image) and torch.equal(back["again"], image)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text("[]")
    for read, name, message in (
        (folder.read_tensors, "x.safetensors", "x.safetensors is damaged"),
        (folder.read_json, "x.json", "x.json is not JSON"),
        (folder.read_json, "y.json", "y.json holds no JSON object"),
        (folder.read_tensors, "z.safetensors", "cannot read"),
    ):
        with pytest.raises(InputError, match=message):
            read(name)


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("test_accuracy", 1, 1.0),
        *[("test_accuracy", value, None) for value in ("0.9", True, [0.9], math.nan, {})],
        *[("epochs", "3", None), ("interrupted", 1, None), ("device", 3, None)],
        ("test_interval_95", [0.1, 0.2], (0.1, 0.2)),
        *[("test_interval_95", value, None) for value in ([0.1], [0.1, "0.2"], 0.1, None)],
    ],
)
def test_a_number_of_another_kind_counts_as_not_measured(key: str, value: Any, result: Any) -> None:
    assert getattr(Summary.from_json({key: value, "future": 1}), key) == result


@pytest.mark.parametrize("version", [0, 3, None, "1"])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / RECIPE).write_text(json.dumps({"schema": version, "recipe": {}}))
    with pytest.raises(InputError, match="version"):
        RunFolder.open(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(InputError, match="there is no run folder"):
        RunFolder.open(tmp_path / "nowhere")
