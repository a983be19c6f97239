"""The benchmark of doubtful labels, at a toy size."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from firstlight.data.shapes import Shapes

ROOT = Path(__file__).parents[2]
TOY = [
    "--images",
    "120",
    "--epochs",
    "1",
    "--width",
    "2",
    "--batch-size",
    "20",
    "--folds",
    "3",
    "--seed",
    "7",
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; what it imports from beside it is forgotten again."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module("suspects")
    yield module
    for name in ("suspects", "rows"):
        sys.modules.pop(name, None)


def test_labels_are_replaced_by_another_class_and_only_so_many(benchmark: ModuleType) -> None:
    images, _ = Shapes(train=400, test=1).load()
    altered = benchmark.with_wrong_labels(images, 0.05, 3)
    assert int((altered.labels != images.labels).sum()) == 20
    assert torch.equal(altered.images, images.images)
    assert 0 <= int(altered.labels.min()) <= int(altered.labels.max()) < 10
    assert torch.equal(altered.labels, benchmark.with_wrong_labels(images, 0.05, 3).labels)
    assert not torch.equal(altered.labels, benchmark.with_wrong_labels(images, 0.05, 4).labels)


def test_precision_is_counted_at_the_number_wrong(benchmark: ModuleType) -> None:
    wrong = torch.tensor([True, False, True, False, True, False])
    found = benchmark.score(torch.tensor([0, 1, 2, 4, 3, 5]), wrong, 2)
    assert (found.precision, found.count) == (pytest.approx(2 / 3), 2)
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    short = benchmark.score(torch.tensor([4]), wrong)
    assert short.precision == pytest.approx(1 / 3) == short.average_precision


# What cleanlab and the packages under it deprecate is not ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_it_compares_with_cleanlab_and_records_a_row_for_each_ranking(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is not installed here: `make bench` installs it")
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(benchmark, "add_row", rows.append)
    monkeypatch.setattr(sys, "argv", ["suspects.py", *TOY, "--record"])
    benchmark.main()
    said = capsys.readouterr().out
    assert "6 of 120 labels are wrong" in said
    assert said.count("\n| cleanlab ") == 8 and said.count("\n| firstlight |") == 1
    assert rows[0]["ranking"] == "firstlight" and len(rows) == 9
    for row in rows:
        assert row["seed"] == 7 and 0 <= row["precision_at_wrong"] <= 1
        assert row["baseline"].startswith("cleanlab ")
        assert f"| {row['ranking']} | {row['precision_at_wrong']:.3f} |" in said
