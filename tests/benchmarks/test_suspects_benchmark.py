"""The benchmark of label errors, at a toy size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.insight import suspects
from benchmarks.publish.insight_tables import confusions
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError
from firstlight.machine.streams import stream

TOY = {"images": 120, "epochs": 1, "width": 2, "batch-size": 20, "seed": 7}


def test_labels_are_replaced_by_another_class_and_only_so_many() -> None:
    images, _ = Shapes(train=400, test=1).load()
    altered = suspects.with_wrong_labels(images, 0.05, 3)
    assert int((altered.labels != images.labels).sum()) == 20
    assert torch.equal(altered.images, images.images)
    assert 0 <= int(altered.labels.min()) <= int(altered.labels.max()) < 10
    assert torch.equal(altered.labels, suspects.with_wrong_labels(images, 0.05, 3).labels)
    assert not torch.equal(altered.labels, suspects.with_wrong_labels(images, 0.05, 4).labels)


def test_labels_of_a_weaker_network_are_its_wrong_predictions_and_only_so_many() -> None:
    true = torch.arange(200) % 4
    predictions = torch.where(torch.arange(200) < 60, (true + 1) % 4, true)
    labels = suspects.confused(true, predictions, 0.1, 5)
    wrong = labels != true
    assert int(wrong.sum()) == 20 and torch.equal(labels[wrong], predictions[wrong])
    assert not torch.equal(labels, suspects.confused(true, predictions, 0.1, 6))
    with pytest.raises(InputError, match="only 60 predictions are"):
        suspects.confused(true, predictions, 0.5, 5)


def test_what_was_judged_is_kept_and_not_judged_again(tmp_path: Path) -> None:
    first = suspects.Judged(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.eye(2))
    file = tmp_path / "judged.safetensors"
    suspects.kept(file, lambda: first)
    again = suspects.kept(file, lambda: pytest.fail("judged again"))
    assert all(torch.equal(getattr(first, key), getattr(again, key)) for key in suspects.KEYS)


def test_a_layer_on_features_is_judged_with_labels_of_a_weaker_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "CIFAR_IMAGES", 300)
    monkeypatch.setattr(suspects, "WEAK_CIFAR", 40)
    generator = stream(0, "features")
    true = torch.arange(400) % 10
    features = torch.eye(10)[true] + 0.5 * torch.randn(400, 10, generator=generator)
    judged = suspects.cifar_judged(features, true, 0, "network", 0.05)
    assert int((judged.labels != judged.true).sum()) == 15
    assert float((judged.probabilities.argmax(1) == judged.true).double().mean()) > 0.5


def test_the_published_line_holds_our_number_with_its_interval_and_the_best_of_theirs() -> None:
    same = {"images": "shapes", "errors": "network", "share": "0.05", "seed": "1", "note": "400 images, x"}
    ours = {"ranking": "firstlight", "average_precision": "0.5", "precision_at_wrong": "0.6"}
    ours |= {"estimated_wrong": "17", "estimated_low": "2", "estimated_high": "60"}
    theirs = {"ranking": suspects.COUNTS, "average_precision": "0.4", "precision_at_wrong": "0.55"}
    other = {"ranking": "b", "average_precision": "0.45", "precision_at_wrong": "0.3", "estimated_wrong": ""}
    rows = [{**same, **ours}, {**same, **theirs, "estimated_wrong": "31"}, {**same, **other}]
    line = confusions({"suspects": rows}).splitlines()[2]
    assert line == (
        "| shapes | of a weaker network | no | 1 | 20 | 17 (2 to 60) | 31 | 0.500 | 0.450 | 0.600 | 0.550 |"
    )


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
