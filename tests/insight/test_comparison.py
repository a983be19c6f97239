"""Two evaluations of the same images: what changed, and whether it is noise."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import InputError
from firstlight.insight.comparison import Change, Comparison, compare
from firstlight.insight.evaluation import Evaluation


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
    first = evaluation(labels, [1, 1, 2, 2, 1, 0], "first/")
    comparison = compare(first, evaluation(labels, [0, 2, 2, 0, 1, 1], "second/"))
    assert (comparison.fixed.tolist(), comparison.broken.tolist()) == ([0, 3], [1])
    assert comparison.still_wrong.tolist() == [5]
    assert comparison.fixed.dtype == torch.int64
    assert comparison.difference == pytest.approx(1 / 6)
    # An image is named by the evaluation that has it wrong, whose run keeps its name.
    changes = (Change(0, "first/0", 0, 1, 0), Change(1, "second/1", 1, 1, 2), Change(3, "first/3", 0, 2, 0))
    assert comparison.changes() == changes
    assert (comparison.changes(2), comparison.changes(0)) == (changes[:2], ())
    assert [change.fixed for change in changes] == [True, False, True]


def test_it_says_that_a_difference_is_noise_or_which_is_better() -> None:
    comparison = with_changes(fixed=30, broken=25, wrong=60, right=885)
    assert not comparison.differs and comparison.p_value > 0.05
    words = str(comparison)
    assert words.startswith("no difference beyond noise: 91.00% and 91.50% of 1,000 images are right")
    assert "a difference of +0.50 points" in words and "p = 0.59" in words
    assert "30 images fixed (wrong in the first" in words
    assert "25 broken" in words and "60 wrong in both" in words
    assert len(words.splitlines()) == 2
    same = with_changes(fixed=0, broken=0, wrong=2, right=8)
    assert (same.p_value, same.difference, same.differs) == (1.0, 0.0, False) and "+0.00 points" in str(same)

    comparison = with_changes(fixed=90, broken=20, wrong=30, right=860)
    assert comparison.differs
    low, high = comparison.interval
    assert str(comparison).startswith("the second is better: 88.00% and 95.00% of 1,000 images")
    assert len(str(comparison).splitlines()) == 3
    assert f"{100 * low:+.2f} to {100 * high:+.2f}" in str(comparison) and "p < 0.0001" in str(comparison)
    assert "several seeds" in str(comparison)
    back = compare(comparison.after, comparison.before)
    assert str(back).startswith("the first is better") and back.difference == -comparison.difference
    assert back.p_value == comparison.p_value and back.fixed.tolist() == comparison.broken.tolist()


def test_other_images_are_refused_with_a_hint() -> None:
    one = evaluation([0, 1, 2], [0, 1, 2])
    for other, message in (
        (evaluation([0, 1], [0, 1]), "of 3 and of 2 images"),
        (evaluation([0, 1, 1], [0, 1, 2]), "different labels at 1 of 3 images"),
        (evaluation([0, 1, 2], [0, 1, 2], classes=4), "different classes"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            compare(one, other)
        assert raised.value.hint
