"""Two evaluations of the same images: what changed, and whether it is noise."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from firstlight.errors import InputError
from firstlight.insight.comparison import Change, Comparison, compare
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.intervals import mcnemar, paired_interval


def evaluation(labels: list[int], predictions: list[int], who: str = "", classes: int = 3) -> Evaluation:
    rows = torch.eye(classes)[predictions]
    names = [f"{who}{number}" for number in range(len(labels))]
    return Evaluation(tuple("abcdef"[:classes]), torch.tensor(labels), rows, names)


def with_changes(fixed: int, broken: int, wrong: int, right: int) -> Comparison:
    """Two evaluations with so many images of each kind, in this order."""
    count = fixed + broken + wrong + right
    before = [1] * fixed + [0] * broken + [1] * wrong + [0] * right
    after = [0] * fixed + [1] * broken + [2] * wrong + [0] * right
    return compare(evaluation([0] * count, before, "before "), evaluation([0] * count, after, "after "))


def test_which_images_were_fixed_and_broken_and_are_still_wrong() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    found = compare(
        evaluation(labels, [1, 1, 2, 2, 1, 0], "first/"), evaluation(labels, [0, 2, 2, 0, 1, 1], "second/")
    )
    assert (found.fixed.tolist(), found.broken.tolist(), found.still_wrong.tolist()) == ([0, 3], [1], [5])
    assert found.fixed.dtype == torch.int64
    assert found.difference == pytest.approx(1 / 6)
    # An image is named by the evaluation that has it wrong, whose run keeps its name.
    changes = (Change(0, "first/0", 0, 1, 0), Change(1, "second/1", 1, 1, 2), Change(3, "first/3", 0, 2, 0))
    assert found.changes() == changes and found.changes(2) == changes[:2] and found.changes(0) == ()
    assert [change.fixed for change in changes] == [True, False, True]


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (0, 5), (3, 3), (2, 7), (9, 1), (6, 6)])
def test_p_value_is_the_share_of_coin_tosses_at_least_as_uneven(fixed: int, broken: int) -> None:
    uneven = abs(fixed - broken)
    tosses = list(itertools.product((1, -1), repeat=fixed + broken))
    assert mcnemar(fixed, broken) == pytest.approx(sum(abs(sum(t)) >= uneven for t in tosses) / len(tosses))


@pytest.mark.parametrize(
    ("fixed", "broken"), [(1000, 1100), (2500, 2400), (4000, 4000), (3, 600), (5200, 4700)]
)
def test_p_value_of_thousands_is_exact(fixed: int, broken: int) -> None:
    total = fixed + broken
    tail = sum(math.comb(total, number) for number in range(min(fixed, broken) + 1))
    assert mcnemar(fixed, broken) == pytest.approx(
        float(min(Fraction(1), Fraction(2 * tail, 2**total))), rel=1e-9
    )
    assert mcnemar(fixed, broken) == mcnemar(broken, fixed)
    assert mcnemar(100_000, 0) == 0.0, "beyond the range of numbers"


@pytest.mark.parametrize(
    ("fixed", "broken", "count"), [(12, 2, 50), (0, 0, 40), (7, 7, 14), (300, 200, 10_000)]
)
def test_interval_is_walds_after_half_an_image_more_in_each_cell(fixed: int, broken: int, count: int) -> None:
    cells = {1: fixed + 0.5, -1: broken + 0.5, 0: count - fixed - broken + 1.0}
    size = sum(cells.values())
    mean = sum(value * weight for value, weight in cells.items()) / size
    variance = sum((value - mean) ** 2 * weight for value, weight in cells.items()) / size
    reach = 1.959964 * math.sqrt(variance / size)
    assert paired_interval(fixed, broken, count) == pytest.approx((mean - reach, mean + reach))
    low, high = paired_interval(broken, fixed, count)
    assert (-high, -low) == pytest.approx(paired_interval(fixed, broken, count))
    assert paired_interval(3, 0, 3)[1] == 1.0, "no difference is larger"


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


def test_it_says_that_a_difference_is_noise() -> None:
    found = with_changes(fixed=30, broken=25, wrong=60, right=885)
    assert not found.differs and found.p_value > 0.05
    said = str(found)
    assert said.startswith("no difference beyond noise: 91.00% and 91.50% of 1,000 images are right")
    assert "a difference of +0.50 points" in said and "p = 0.59" in said
    assert (
        "30 images fixed (wrong in the first" in said and "25 broken" in said and "60 wrong in both" in said
    )
    assert len(said.splitlines()) == 2
    same = with_changes(fixed=0, broken=0, wrong=2, right=8)
    assert (same.p_value, same.difference, same.differs) == (1.0, 0.0, False) and "+0.00 points" in str(same)


def test_it_says_which_is_better() -> None:
    found = with_changes(fixed=90, broken=20, wrong=30, right=860)
    assert found.differs
    low, high = found.interval
    assert str(found).startswith("the second is better: 88.00% and 95.00% of 1,000 images")
    assert f"{100 * low:+.2f} to {100 * high:+.2f}" in str(found) and "p < 0.0001" in str(found)
    assert "several seeds" in str(found).splitlines()[2]
    back = compare(found.after, found.before)
    assert str(back).startswith("the first is better") and back.difference == -found.difference
    assert back.p_value == found.p_value and back.fixed.tolist() == found.broken.tolist()


def test_other_images_are_refused_with_a_hint() -> None:
    one = evaluation([0, 1, 2], [0, 1, 2])
    for other, said in (
        (evaluation([0, 1], [0, 1]), "of 3 and of 2 images"),
        (evaluation([0, 1, 1], [0, 1, 2]), "different labels at 1 of 3 images"),
        (evaluation([0, 1, 2], [0, 1, 2], classes=4), "different classes"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            compare(one, other)
        assert raised.value.hint
