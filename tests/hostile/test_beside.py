"""Two trainings at once on two cores: their threads sleep while they wait for each other."""

from __future__ import annotations

import pytest

from benchmarks.speed.beside import SPINNING, seconds
from firstlight.machine.limits import usable_cores


@pytest.mark.soak
@pytest.mark.skipif(usable_cores() < 2, reason="one core has no second thread")
def test_two_narrow_trainings_at_once_take_at_most_three_times_as_long_as_one_alone() -> None:
    alone = min(seconds(1, 2, 4, {})[0] for _ in range(3))
    beside = min(max(seconds(2, 2, 4, {})) for _ in range(3))
    spinning = max(seconds(2, 2, 4, SPINNING))
    assert beside < 3 * alone and beside < spinning
