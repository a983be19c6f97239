"""Choosing on images held out, and taking parts away one by one, at a toy size."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from firstlight.insight.evaluation import Evaluation
from firstlight.recipes import named

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = ("choose", "ablations", "gpu_worker", "rows")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, writing to a table of the test's own."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        loaded = {name: importlib.import_module(name) for name in SCRIPTS}
    monkeypatch.setattr(loaded["choose"], "CHOICES", tmp_path / "choices.csv")
    yield loaded
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def arguments(scripts: dict[str, ModuleType], *words: str) -> argparse.Namespace:
    return scripts["choose"].options("").parse_args([*words, "--held-out", "20", "--record"])  # type: ignore[no-any-return]


def test_every_part_can_be_taken_away(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose, ablations = scripts["choose"], scripts["ablations"]
    recipe = scripts["gpu_worker"].toy(named("cifar10.fast"))
    trained = []

    def score(job: object) -> dict[str, float]:
        trained.append(job)
        return real(job)  # type: ignore[no-any-return]

    real = choose.score
    monkeypatch.setattr(choose, "score", score)
    changes = {"": lambda recipe: recipe, **ablations.WITHOUT}
    choose.compare(recipe, changes, arguments(scripts), before=ablations.learn_first_layer, note="toy")
    rows = scripts["rows"].read_rows(choose.CHOICES)
    assert [row["change"] for row in rows] == list(changes)
    assert {(row["recipe"], row["held_out"], row["note"]) for row in rows} == {("cifar10.fast", "20", "toy")}
    # What stands is trained twice and alike; all that is taken away is seen in the weights.
    assert len({row["calibrated_loss"] for row in rows}) > len(rows) // 2
    assert rows[0]["calibrated_loss"] == rows[1]["calibrated_loss"]
    jobs = dict(zip(changes, trained, strict=True))
    weights = {change: [*job.model.parameters()] for change, job in jobs.items()}
    for change in ablations.WITHOUT:
        same = all(map(torch.equal, weights[""], weights[change])) and (
            [w.requires_grad for w in weights[""]] == [w.requires_grad for w in weights[change]]
        )
        assert same == (change == choose.AS_IT_STANDS), change
    assert all(len(job.test) == 0 and len(job.validation) == 20 for job in trained), (
        "the test set is not read"
    )
    assert "| as it stands | 1 |" in capsys.readouterr().out


def test_the_calibrated_loss_is_that_of_the_best_temperature(scripts: dict[str, ModuleType]) -> None:
    labels = torch.arange(4).repeat(25)
    right = torch.zeros(100, dtype=torch.bool)
    right[:80] = True
    # Eight of ten are right, but every answer says 0.5: the best temperature says 0.8.
    said = torch.full((100, 4), 0.5 / 3)
    said[torch.arange(100), torch.where(right, labels, (labels + 1) % 4)] = 0.5
    found = scripts["choose"].calibrated_loss(Evaluation(tuple("abcd"), labels, said, [""] * 100))
    expected = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2 / 3))
    assert found == pytest.approx(expected, abs=2e-3)
