"""Mean, standard deviation and Student's interval of several runs."""

from __future__ import annotations

import math

import pytest

from firstlight.errors import InputError
from firstlight.insight.intervals import Spread, student_quantile

# From printed tables of Student's distribution, two-sided; with many degrees it is the normal one.
TABLE = {(1, 0.95): 12.706, (2, 0.95): 4.303, (3, 0.95): 3.182, (9, 0.95): 2.262, (120, 0.95): 1.980}
TABLE |= {(2, 0.99): 9.925, (5, 0.99): 4.032, (10, 0.90): 1.812, (100_000, 0.95): 1.95996}


@pytest.mark.parametrize(("asked", "quantile"), TABLE.items())
def test_quantiles_are_those_of_the_tables(asked: tuple[int, float], quantile: float) -> None:
    assert student_quantile(*asked) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_is_of_the_mean() -> None:
    found = Spread((0.93, 0.94, 0.95, 0.94))
    assert found.mean == pytest.approx(0.94) and found.sd == pytest.approx(math.sqrt(2e-4 / 3))
    reach = 3.182446 * math.sqrt(2e-4 / 3) / 2
    assert found.interval == pytest.approx((0.94 - reach, 0.94 + reach), rel=1e-6)


def test_a_single_value_has_neither_sd_nor_interval_and_none_has_no_mean() -> None:
    assert (Spread((0.5,)).mean, Spread((0.5,)).sd, Spread((0.5,)).interval) == (0.5, None, None)
    with pytest.raises(InputError, match="no value"):
        Spread(())


@pytest.mark.parametrize(("degrees", "inside"), [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_what_has_no_quantile_is_refused(degrees: int, inside: float) -> None:
    with pytest.raises(InputError, match="no quantile"):
        student_quantile(degrees, inside)
