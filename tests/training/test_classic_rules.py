"""The classic rules read a curve as their authors say."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.training.classic_rules import RULES, classic_rates, minimum_over_ten, slide, steepest, valley

RATES = np.geomspace(1e-4, 10, 101).tolist()


def curve(lowest: float = 0.1, width: float = 1.0) -> list[float]:
    """Return a loss that falls to its least at a rate, and rises again as it fell."""
    return (2.3 - np.exp(-((np.log10(np.array(RATES) / lowest) / width) ** 2))).tolist()


def test_each_rule_on_a_bell() -> None:
    losses = curve()
    # A bell is steepest at 1/√2 of its width, in decades.
    assert steepest(RATES, losses) == pytest.approx(0.1 / 10**0.7071, rel=0.1)
    assert minimum_over_ten(RATES, losses) == pytest.approx(0.01, rel=0.01)
    # The longest fall goes from the first rate, 0.0001, to the lowest loss, 0.1: three decades.
    assert valley(RATES, losses) == pytest.approx(10**-2.5, rel=0.15)
    # Beyond the bell the loss is flat, as far as the right end.
    assert slide(RATES, losses) > 0.2
    assert slide(RATES, np.linspace(0, 1, 101).cumsum().tolist()) == RATES[0], "no slope stays the same"


def test_a_small_rise_does_not_end_a_valley() -> None:
    losses = curve()
    losses[30] += 0.01
    assert valley(RATES, losses) == pytest.approx(valley(RATES, curve()), rel=0.2)


def test_all_rules_and_a_curve_that_is_none() -> None:
    assert classic_rates(RATES, curve()).keys() == RULES.keys()
    assert classic_rates(RATES[:2], curve()[:2]) == {}
