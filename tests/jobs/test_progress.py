"""What is said of the time that is left."""

from __future__ import annotations

import pytest

from firstlight.jobs.progress import Progress, cost_after
from firstlight.training.history import Epoch
from firstlight.training.loop import Tick


def test_cost_counts_the_rest_of_the_epoch_under_way() -> None:
    costs = (0.25, 0.25, 1.0)
    assert cost_after(0, costs, 10) == 15
    assert cost_after(4, costs, 10) == 14
    assert cost_after(25, costs, 10) == 5
    assert cost_after(30, costs, 10) == 0


def test_dear_epochs_are_expected_to_take_longer(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, (0.25, 0.25, 1.0, 1.0)) as progress:
        for epoch, step, seconds in ((1, 10, 8.0), (3, 30, 48.0)):
            finished = Epoch(epoch, step, 0.1, 1.0, 0.5, 100.0, train_seconds=seconds)
            progress.update(Tick(step, 40, 0.1, 100.0, finished))
    first, third = capsys.readouterr().out.splitlines()
    assert first.endswith("72 s left") and third.endswith("32 s left")
