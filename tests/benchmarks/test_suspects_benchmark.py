"""The benchmark of label errors, at a toy size."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from benchmarks.insight import suspects
from firstlight.data.shapes import Shapes

TOY = {"images": 120, "epochs": 1, "width": 2, "batch-size": 20, "seed": 7}


def test_labels_are_replaced_by_another_class_and_only_so_many() -> None:
    images, _ = Shapes(train=400, test=1).load()
    altered = suspects.with_wrong_labels(images, 0.05, 3)
    assert int((altered.labels != images.labels).sum()) == 20
    assert torch.equal(altered.images, images.images)
    assert 0 <= int(altered.labels.min()) <= int(altered.labels.max()) < 10
    assert torch.equal(altered.labels, suspects.with_wrong_labels(images, 0.05, 3).labels)
    assert not torch.equal(altered.labels, suspects.with_wrong_labels(images, 0.05, 4).labels)


def test_precision_is_counted_at_the_number_wrong() -> None:
    wrong = torch.tensor([True, False, True, False, True, False])
    score = suspects.score(torch.tensor([0, 1, 2, 4, 3, 5]), wrong, 2)
    assert (score.precision, score.count) == (pytest.approx(2 / 3), 2)
    assert score.average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    short = suspects.score(torch.tensor([4]), wrong)
    assert short.precision == pytest.approx(1 / 3) == short.average_precision


def test_rankings_are_means_over_seeds_with_an_estimate_where_there_is_one() -> None:
    same = {"ranking": "ours", "average_precision": "0.5"}
    rows = [
        {**same, "precision_at_wrong": "0.5", "estimated_wrong": "10"},
        {**same, "precision_at_wrong": "0.7", "estimated_wrong": "13"},
        {"ranking": "theirs", "precision_at_wrong": 1, "average_precision": 1, "estimated_wrong": None},
    ]
    lines = suspects.table(rows).splitlines()[2:]
    assert lines == ["| ours | 2 | 0.600 | 0.500 | 12 |", "| theirs | 1 | 1.000 | 1.000 |  |"]


# What cleanlab and the packages under it deprecate is not ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_it_compares_with_cleanlab_and_records_a_row_for_each_ranking(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is not installed here: `make bench` installs it")
    rows = rows_of(suspects)
    monkeypatch.setattr(sys, "argv", ["", *(f"--{key}={value}" for key, value in TOY.items()), "--record"])
    suspects.main()
    output = capsys.readouterr().out
    assert "6 of 120 labels are wrong" in output
    assert output.count("\n| cleanlab ") == 8 and output.count("\n| firstlight |") == 1
    assert rows[0]["ranking"] == "firstlight" and len(rows) == 9
    for row in rows:
        assert row["seed"] == 7 and 0 <= row["precision_at_wrong"] <= 1
        assert row["baseline"].startswith("cleanlab ")
        assert f"| {row['ranking']} | 1 | {row['precision_at_wrong']:.3f} |" in output
