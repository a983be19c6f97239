"""Calibration, against sorting by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

from firstlight.errors import InputError
from firstlight.insight.calibration import calibration
from firstlight.insight.evaluation import Evaluation
from firstlight.machine.streams import stream


def rows_of(confidences: list[float], classes: int = 4) -> torch.Tensor:
    """Rows whose first class has these probabilities, and shares the rest among the others."""
    first = torch.tensor(confidences)
    rows = ((1 - first) / (classes - 1))[:, None].repeat(1, classes)
    rows[:, 0] = first
    return rows


def test_calibration_of_a_few_images_worked_by_hand() -> None:
    result = calibration(torch.tensor([0, 1, 0, 0]), rows_of([0.5, 0.7, 0.9, 0.8]), bins=2)
    low, high = result.bins
    assert (low.low, low.high, low.count, low.confidence, low.accuracy) == (0, 0.5, 1, 0.5, 1)
    assert (high.low, high.high, high.count) == (0.5, 1, 3)
    assert high.confidence == pytest.approx(0.8) and high.accuracy == pytest.approx(2 / 3)
    assert result.error == pytest.approx((1 * 0.5 + 3 * (0.8 - 2 / 3)) / 4)


def test_the_error_is_0_where_confidence_is_accuracy_and_1_where_all_that_is_certain_is_wrong() -> None:
    assert calibration(torch.tensor([0, 0, 0, 1]), rows_of([0.75] * 4)).error == pytest.approx(0, abs=1e-7)
    assert calibration(torch.tensor([1, 2]), rows_of([1.0, 1.0])).error == pytest.approx(1)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_calibration_is_what_sorting_by_hand_gives(bins: int) -> None:
    generator = stream(3, "calibration")
    rows = torch.softmax(3 * torch.randn(200, 4, generator=generator), 1)
    labels = torch.randint(0, 4, (200,), generator=generator)
    result = calibration(labels, rows, bins)
    # An edge that fp32 cannot hold is the nearest number that it can.
    edges = [float(torch.tensor(Fraction(n, bins).__float__(), dtype=torch.float32)) for n in range(bins + 1)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(rows, labels.tolist(), strict=True):
        confidence = float(row.max())
        (number,) = (n for n in range(bins) if edges[n] < confidence <= edges[n + 1])
        members[number].append((confidence, int(row.argmax()) == label))
    error = 0.0
    for each, inside in zip(result.bins, members, strict=True):
        assert each.count == len(inside)
        if not inside:
            assert each.confidence is None and each.accuracy is None
            continue
        confidence = sum(c for c, _ in inside) / len(inside)
        accuracy = sum(right for _, right in inside) / len(inside)
        assert (each.confidence, each.accuracy) == (pytest.approx(confidence), pytest.approx(accuracy))
        error += len(inside) / 200 * abs(accuracy - confidence)
    assert result.error == pytest.approx(error)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    confidences = [number / 5 for number in (2, 3, 4, 5)]
    bins = calibration(torch.zeros(4, dtype=torch.int64), rows_of(confidences), bins=5).bins
    assert [each.count for each in bins] == [0, 1, 1, 1, 1]
    assert all(below.high == above.low for below, above in itertools.pairwise(bins))


def test_an_evaluation_has_its_own_calibration() -> None:
    labels, rows = torch.tensor([0, 0, 1]), rows_of([0.5, 0.7, 0.9])
    evaluation = Evaluation(tuple("abcd"), labels, rows, ["", "", ""])
    assert evaluation.calibration(4) == calibration(labels, rows, 4)
    assert len(evaluation.calibration().bins) == 15


def test_no_image_and_no_bin_are_bad_input() -> None:
    with pytest.raises(InputError, match="no image"):
        calibration(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    with pytest.raises(InputError, match="at least 1 bin"):
        calibration(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), bins=0)
