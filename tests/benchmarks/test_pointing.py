"""The pointing game scores what it says, and the benchmarks of Grad-CAM run through at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.insight import pointing
from firstlight.insight.gradcam import METHODS
from firstlight.record.record import ENVIRONMENT


def spot(row: int, column: int) -> Tensor:
    heat = torch.zeros(4, 4)
    heat[row, column] = 1
    return heat


def test_a_map_hits_where_its_maximum_lies_on_the_object() -> None:
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[:, 8:12, 4:8] = True  # what the place in row 2, column 1 of a 4×4 grid covers
    masks[4, 9, 5] = False
    plateau = spot(2, 1) + spot(1, 2)
    maps = torch.stack([spot(2, 1), spot(1, 2), plateau, torch.zeros(4, 4), spot(2, 1)])
    # Smoothed, the maximum is the middle of its place: four pixels, of which the last mask lacks one.
    assert pointing.hits(maps, masks).tolist() == pytest.approx([1, 0, 0.5, 16 / 256, 0.75])
    corner = torch.zeros(1, 16, 16, dtype=torch.bool)
    corner[0, :3, :1] = True  # a maximum in a corner reaches the border: two of its four pixels
    assert pointing.hits(spot(0, 0)[None], corner).tolist() == [0.5]


def test_the_centre_is_the_middle_pixels() -> None:
    even, odd = torch.zeros(2, 32, 32, dtype=torch.bool), torch.zeros(1, 5, 7, dtype=torch.bool)
    even[0, :16] = True
    even[1, :15] = True
    odd[0, 2, 3] = True
    assert pointing.centre_hits(even).tolist() == [0.5, 0]
    assert pointing.centre_hits(odd).tolist() == [1]


def test_every_class_counts_alike() -> None:
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


def test_a_network_that_looks_at_the_object_hits_it_and_one_without_evidence_is_left_to_chance() -> None:
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :4, 8:12] = masks[1, 12:, :4] = masks[2, 7:9, 7:9] = True
    images = masks[:, None].float()
    labels = torch.zeros(3, dtype=torch.int64)
    grid, seen = pointing.score(Bright(), images[:2], labels[:2], masks[:2], "grid")
    assert (grid, seen["pointing"], seen["pointing_off_centre"], seen["pointing_empty"]) == ("4×4", 1, 1, 0)
    _, blind = pointing.score(Bright(), images, labels + 1, masks, "grid")
    assert blind["pointing_empty"] == 1
    assert blind["pointing"] == pytest.approx(float(masks.double().mean()))
    plain = pointing.baseline(labels, masks)
    expected = [1 / 3, blind["pointing"], 16 / 256]  # the centre, chance, chance off the centre
    assert list(plain.values()) == pytest.approx(expected)
    covered = torch.ones(2, 16, 16, dtype=torch.bool)
    assert pointing.baseline(labels[:2], covered)["pointing_off_centre_chance"] is None
    assert pointing.score(Bright(), images[:2], labels[:2], covered, "grid")[1]["pointing_off_centre"] is None


def test_a_run_is_scored_from_its_folder_alone(run: Path, rows_of: Any) -> None:
    rows = rows_of(pointing)
    grids = {"layer1": "16×16", "layer2": "8×8", "layer3": "4×4", "prep": "32×32"}
    pointing.main([str(run), "--random", "2", "--endpoints", *grids, "--methods", *METHODS, "--record"])
    assert [(row["method"], row["endpoint"], row["grid"]) for row in rows] == [
        (method, *grid) for method in METHODS for grid in grids.items()
    ]
    right = round(json.loads((run / "summary.json").read_text())["test_accuracy"] * 120)
    for row in rows:
        assert row["note"].startswith(f"pointing game on {right} test images")
        assert (row["object_size"], row["test_images"], row["recipe"]) == (100, 120, "shapes.demo")
        assert 0 < row["pointing_chance"] < row["pointing_centre"] < 1
        assert all(0 <= row[f"pointing_{of}"] <= 1 for of in ("random", "off_centre", "empty"))


def test_other_images_than_the_runs_are_not_scored(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    environment = json.loads((run / ENVIRONMENT).read_text())
    environment["data"]["test_sha256"] = "0" * 64
    (tmp_path / "run" / ENVIRONMENT).write_text(json.dumps(environment))
    with pytest.raises(SystemExit, match="tested on other images"):
        pointing.main([str(tmp_path / "run")])
