"""Choosing on images held out, and taking parts away one by one, at a toy size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.recipes import ablations, choose
from benchmarks.speed.gpu_worker import toy
from firstlight.insight.evaluation import Evaluation
from firstlight.recipes import named


def test_every_part_can_be_taken_away(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, recipe = rows_of(choose), toy(named("cifar10.fast"))
    arguments = choose.parser("").parse_args(["--held-out", "20", "--record"])
    trained = []

    def score(job: object) -> dict[str, float]:
        trained.append(job)
        return real(job)  # type: ignore[no-any-return]

    real = choose.score
    monkeypatch.setattr(choose, "score", score)
    changes = {"": lambda recipe: recipe, **ablations.WITHOUT}
    choose.compare(recipe, changes, arguments, "toy.py", before=ablations.learn_first_layer)
    assert [row["change"] for row in rows] == list(changes)
    assert {(row["recipe"], row["held_out"]) for row in rows} == {("cifar10.fast", 20)}
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
    assert {(len(job.test), len(job.validation)) for job in trained} == {(0, 20)}, "the test set is not read"
    assert "| as it stands | 1 |" in capsys.readouterr().out


def test_the_calibrated_loss_is_that_of_the_best_temperature() -> None:
    labels = torch.arange(4).repeat(25)
    right = torch.zeros(100, dtype=torch.bool)
    right[:80] = True
    # Eight of ten are right, but every confidence is 0.5: the best temperature makes it 0.8.
    probabilities = torch.full((100, 4), 0.5 / 3)
    probabilities[torch.arange(100), torch.where(right, labels, (labels + 1) % 4)] = 0.5
    loss = choose.calibrated_loss(Evaluation(tuple("abcd"), labels, probabilities, [""] * 100))
    expected = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2 / 3))
    assert loss == pytest.approx(expected, abs=2e-3)
