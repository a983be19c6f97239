"""Intervals and tests, against tables, brute force and the formulas of their papers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from firstlight.errors import InputError
from firstlight.insight.intervals import (
    Spread,
    holm,
    mcnemar,
    paired_interval,
    paired_p_value,
    student_quantile,
    wilson_interval,
)

# From printed tables of Student's distribution, two-sided; with many degrees it is the normal one.
TABLE = {(1, 0.95): 12.706, (2, 0.95): 4.303, (3, 0.95): 3.182, (9, 0.95): 2.262, (120, 0.95): 1.980}
TABLE |= {(2, 0.99): 9.925, (5, 0.99): 4.032, (10, 0.90): 1.812, (100_000, 0.95): 1.95996}


@pytest.mark.parametrize(("arguments", "quantile"), TABLE.items())
def test_quantiles_are_those_of_the_tables(arguments: tuple[int, float], quantile: float) -> None:
    assert student_quantile(*arguments) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_of_a_mean_and_what_has_none() -> None:
    spread = Spread((0.93, 0.94, 0.95, 0.94))
    assert spread.mean == pytest.approx(0.94)
    assert spread.sd == pytest.approx(math.sqrt(2e-4 / 3))
    reach = 3.182446 * math.sqrt(2e-4 / 3) / 2
    assert spread.interval == pytest.approx((0.94 - reach, 0.94 + reach), rel=1e-6)
    assert (Spread((0.5,)).mean, Spread((0.5,)).sd, Spread((0.5,)).interval) == (0.5, None, None)

    with pytest.raises(InputError, match="no value"):
        Spread(())
    with pytest.raises(InputError, match="no interval"):
        wilson_interval(0, 0)
    for degrees, inside in ((0, 0.95), (3, 1.0), (3, 0.0)):
        with pytest.raises(InputError, match="no quantile"):
            student_quantile(degrees, inside)


@pytest.mark.parametrize(("right", "count"), [(9420, 10000), (3, 7), (1, 500), (10, 10)])
@pytest.mark.parametrize("z", [1.0, 1.959964, 2.575829])
def test_wilson_interval_ends_where_the_score_test_does(right: int, count: int, z: float) -> None:
    for end in wilson_interval(right, count, z):
        reach = z * math.sqrt(end * (1 - end) / count)
        assert abs(right / count - end) == pytest.approx(reach, rel=1e-9, abs=1e-7)
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    assert wilson_interval(0, 10)[0] == 0.0


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (0, 5), (3, 3), (2, 7), (9, 1), (6, 6)])
def test_p_value_is_the_share_of_coin_tosses_at_least_as_uneven(fixed: int, broken: int) -> None:
    uneven = abs(fixed - broken)
    tosses = list(itertools.product((1, -1), repeat=fixed + broken))
    assert mcnemar(fixed, broken) == pytest.approx(sum(abs(sum(t)) >= uneven for t in tosses) / len(tosses))


@pytest.mark.parametrize(("fixed", "broken"), [(1000, 1100), (2000, 2000), (3, 600)])
def test_p_value_of_thousands_is_exact(fixed: int, broken: int) -> None:
    total = fixed + broken
    tail = sum(math.comb(total, number) for number in range(min(fixed, broken) + 1))
    exact = float(min(Fraction(1), Fraction(2 * tail, 2**total)))
    assert mcnemar(fixed, broken) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(fixed, broken) == mcnemar(broken, fixed)
    assert mcnemar(100_000, 0) == 0.0, "beyond the range of fp64"


@pytest.mark.parametrize("images", [(12, 2, 50), (0, 0, 40), (7, 7, 14), (300, 200, 10_000)])
def test_interval_is_walds_after_half_an_image_more_in_each_cell(images: tuple[int, int, int]) -> None:
    fixed, broken, count = images
    cells = {1: fixed + 0.5, -1: broken + 0.5, 0: count - fixed - broken + 1.0}
    size = sum(cells.values())
    mean = sum(value * weight for value, weight in cells.items()) / size
    variance = sum((value - mean) ** 2 * weight for value, weight in cells.items()) / size
    reach = 1.959964 * math.sqrt(variance / size)
    assert paired_interval(fixed, broken, count) == pytest.approx((mean - reach, mean + reach))
    low, high = paired_interval(broken, fixed, count)
    assert (-high, -low) == pytest.approx(paired_interval(fixed, broken, count))
    assert paired_interval(3, 0, 3)[1] == 1.0 and paired_interval(0, 3, 3)[0] == -1.0


@pytest.mark.parametrize(("up", "down"), [(0.1, 0.1), (0.2, 0.05), (0.05, 0.3), (0.02, 0.02)])
def test_interval_holds_the_truth_in_about_95_of_100_draws(up: float, down: float) -> None:
    count, covered = 40, 0.0
    for fixed in range(count + 1):
        for broken in range(count + 1 - fixed):
            low, high = paired_interval(fixed, broken, count)
            if low <= up - down <= high:
                ways = math.comb(count, fixed) * math.comb(count - fixed, broken)
                covered += ways * up**fixed * down**broken * (1 - up - down) ** (count - fixed - broken)
    assert 0.94 <= covered <= 0.999


def test_a_paired_t_test_is_that_of_the_formula_and_needs_a_spread() -> None:
    # With two degrees of freedom the share outside ±t is 1 - t / √(2 + t²); here t = 2√3.
    assert paired_p_value((1.0, 2.0, 3.0)) == pytest.approx(1 - math.sqrt(12 / 14))
    assert paired_p_value((-1.0, -2.0, -3.0)) == paired_p_value((1.0, 2.0, 3.0))
    assert paired_p_value((-1.0, 0.0, 1.0)) == pytest.approx(1)
    assert paired_p_value((0.0, 0.0)) == 1.0
    assert paired_p_value((0.9 - 0.8, 0.92 - 0.82)) is None  # equal but for their last bits
    assert paired_p_value((0.01,)) is None


def test_holm_multiplies_by_the_number_of_tests_that_are_left_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]
