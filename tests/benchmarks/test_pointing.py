"""The pointing game scores what it says, and the benchmarks of Grad-CAM run through at toy size."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from firstlight.insight.gradcam import METHODS
from firstlight.jobs.train import train
from firstlight.record.record import ENVIRONMENT

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `shapes` that has learned a little."""
    out = tmp_path_factory.mktemp("pointing") / "run"
    size = {"train": 200, "test": 120, "width": 2, "batch_size": 20}
    where = {"device": "cpu", "precision": "fp32"}
    train("shapes.demo", out=out, epochs=2, peak_lr=0.1, min_lr=0.001, quiet=True, **size, **where)
    return out


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def pointing(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> Iterator[ModuleType]:
    yield from script("pointing", monkeypatch, rows)


@pytest.fixture
def gradcam_speed(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> Iterator[ModuleType]:
    pytest.importorskip("captum", reason="captum is not installed: pip install captum")
    yield from script("gradcam_speed", monkeypatch, rows)


def script(name: str, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> Iterator[ModuleType]:
    """Give a benchmark as a module that records into `rows`; it is forgotten again afterwards."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        module = importlib.import_module(name)
    monkeypatch.setattr(module, "add_row", rows.append)
    yield module
    for each in (name, "rows"):
        sys.modules.pop(each, None)


def spot(row: int, column: int, *, side: int = 4) -> Tensor:
    found = torch.zeros(side, side)
    found[row, column] = 1
    return found


def test_a_map_hits_where_its_maximum_lies_on_the_object(pointing: ModuleType) -> None:
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[:, 8:12, 4:8] = True  # what the place in row 2, column 1 of a 4×4 grid covers
    masks[4, 9, 5] = False
    plateau = spot(2, 1) + spot(1, 2)
    maps = torch.stack([spot(2, 1), spot(1, 2), plateau, torch.zeros(4, 4), spot(2, 1)])
    # Smoothed, the maximum is the middle of its place: four pixels, of which the last mask lacks one.
    assert pointing.hits(maps, masks).tolist() == pytest.approx([1, 0, 0.5, 16 / 256, 0.75])


def test_a_maximum_in_a_corner_reaches_the_border(pointing: ModuleType) -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :3, :1] = True  # two of the four pixels
    assert pointing.hits(spot(0, 0)[None], masks).tolist() == [0.5]


def test_the_centre_is_the_middle_pixels(pointing: ModuleType) -> None:
    even, odd = torch.zeros(2, 32, 32, dtype=torch.bool), torch.zeros(1, 5, 7, dtype=torch.bool)
    even[0, :16] = True
    even[1, :15] = True
    odd[0, 2, 3] = True
    assert pointing.centre_hits(even).tolist() == [0.5, 0]
    assert pointing.centre_hits(odd).tolist() == [1]


def test_every_class_counts_alike(pointing: ModuleType) -> None:
    mean, error = pointing.over_classes(torch.tensor([1, 1, 1, 0.5, 0]), torch.tensor([7, 7, 7, 2, 2]))
    assert mean == pytest.approx((1 + 0.25) / 2)
    assert error == pytest.approx((0.25**2 / 2) ** 0.5 / 2)


class Bright(nn.Module):
    """Sees brightness, and takes it as evidence for class 0 and against class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.AvgPool2d(4)

    def forward(self, images: Tensor) -> Tensor:
        total = self.grid(images).sum(dim=(1, 2, 3))
        return torch.stack([total, -total], 1)

    def endpoints(self) -> dict[str, nn.Module]:
        return {"grid": self.grid}


def test_a_network_that_looks_at_the_object_hits_it_and_one_without_evidence_is_left_to_chance(
    pointing: ModuleType,
) -> None:
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :4, 8:12] = masks[1, 12:, :4] = masks[2, 7:9, 7:9] = True
    images = masks[:, None].float()
    labels = torch.zeros(3, dtype=torch.int64)
    found = pointing.score(Bright(), images[:2], labels[:2], masks[:2], "grid")
    assert (found.grid, found.hits, found.off_centre, found.empty) == ("4×4", 1, 1, 0)
    blind = pointing.score(Bright(), images, labels + 1, masks, "grid")
    assert blind.empty == 1
    assert blind.hits == pytest.approx(float(masks.double().mean()))
    plain = pointing.baseline(labels, masks)
    assert (plain.count, plain.off_centre_count) == (3, 2)
    assert plain.centre == pytest.approx(1 / 3) and plain.chance == pytest.approx(blind.hits)
    assert plain.off_centre_chance == pytest.approx(16 / 256)


def test_without_an_object_off_centre_nothing_is_said_of_such(pointing: ModuleType) -> None:
    masks = torch.ones(2, 16, 16, dtype=torch.bool)
    labels = torch.tensor([0, 1])
    assert pointing.baseline(labels, masks).off_centre_chance is None
    assert pointing.score(Bright(), torch.ones(2, 1, 16, 16), labels, masks, "grid").off_centre is None


def test_a_run_is_scored_from_its_folder_alone(
    run: Path, pointing: ModuleType, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    pointing.main([str(run), "--random", "2", "--record"])
    said = capsys.readouterr().out
    predicted = json.loads((run / "summary.json").read_text())["test_accuracy"] * 120
    assert said.startswith(
        f"Objects of 100 % of their usual size. {round(predicted)} of 120 test images are classified rightly"
    )
    assert [(row["endpoint"], row["grid"]) for row in rows] == [
        ("layer1", "16×16"),
        ("layer2", "8×8"),
        ("layer3", "4×4"),
    ]
    for row in rows:
        assert f"| gradcam | {row['endpoint']} | {row['grid']} | " in said
        assert (row["method"], row["object_size"]) == ("gradcam", 100)
        assert row["recipe"] == "shapes.demo" and "test_accuracy" not in row
        assert 0 < row["pointing_chance"] < row["pointing_centre"] < 1
        assert all(0 <= row[f"pointing_{of}"] <= 1 for of in ("random", "off_centre", "empty"))
    rows.clear()
    pointing.main([str(run), "--random", "1", "--endpoints", "prep", "--methods", *METHODS])
    said = capsys.readouterr().out
    assert rows == [] and "| gradcam | prep | 32×32 |" in said and "| layercam | prep | 32×32 |" in said


def test_other_images_than_the_runs_are_not_scored(run: Path, tmp_path: Path, pointing: ModuleType) -> None:
    shutil.copytree(run, tmp_path / "run")
    environment = json.loads((run / ENVIRONMENT).read_text())
    environment["data"]["test_sha256"] = "0" * 64
    (tmp_path / "run" / ENVIRONMENT).write_text(json.dumps(environment))
    with pytest.raises(SystemExit, match="tested on other images"):
        pointing.main([str(tmp_path / "run")])


def test_the_speed_is_measured_against_captum(
    gradcam_speed: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = ["--images", "6", "--batch-size", "4", "--rounds", "2", "--width", "2", "--device", "cpu"]
    gradcam_speed.main([*size, "--record"])
    assert "times as fast as captum" in capsys.readouterr().out
    (row,) = rows
    assert row["endpoint"] == "layer2" and row["baseline"].startswith("captum ") and row["ratio"] > 0
    # Maps that differ from captum's are no result.
    monkeypatch.setattr(gradcam_speed, "AGREEMENT", -1.0)
    with pytest.raises(SystemExit, match="the maps differ"):
        gradcam_speed.main(size)
