"""Calibration, against sorting by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from firstlight.errors import InputError
from firstlight.insight.calibration import calibration
from firstlight.insight.evaluation import Evaluation
from firstlight.machine.streams import stream


def rows_of(confidences: list[float], classes: int = 4) -> torch.Tensor:
    """Rows whose first class has these probabilities, and shares the rest among the others."""
    first = torch.tensor(confidences)[:, None]
    return torch.cat([first, ((1 - first) / (classes - 1)).repeat(1, classes - 1)], 1)


def test_calibration_of_a_few_images_worked_by_hand() -> None:
    result = calibration(torch.tensor([0, 1, 0, 0]), rows_of([0.5, 0.7, 0.9, 0.8]), bins=2)
    low, high = result.bins
    assert (low.low, low.high, low.count, low.confidence, low.accuracy) == (0, 0.5, 1, 0.5, 1)
    assert (high.low, high.high, high.count) == (0.5, 1, 3)
    assert high.confidence == pytest.approx(0.8) and high.accuracy == pytest.approx(2 / 3)
    assert result.error == pytest.approx((1 * 0.5 + 3 * (0.8 - 2 / 3)) / 4)
    # Confidence is accuracy; all that is certain is wrong.
    assert calibration(torch.tensor([0, 0, 0, 1]), rows_of([0.75] * 4)).error == pytest.approx(0, abs=1e-7)
    assert calibration(torch.tensor([1, 2]), rows_of([1.0, 1.0])).error == pytest.approx(1)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_calibration_is_what_sorting_by_hand_gives(bins: int) -> None:
    generator = stream(3, "calibration")
    rows = torch.softmax(3 * torch.randn(200, 4, generator=generator), 1)
    labels = torch.randint(0, 4, (200,), generator=generator)
    result = calibration(labels, rows, bins)
    confidences, right = rows.amax(1), rows.argmax(1) == labels
    edges = torch.tensor([number / bins for number in range(bins + 1)])  # the nearest that fp32 can hold
    error = 0.0
    for each, low, high in zip(result.bins, edges[:-1], edges[1:], strict=True):
        inside = (confidences > low) & (confidences <= high)
        assert each.count == int(inside.sum())
        if not each.count:
            assert each.confidence is None and each.accuracy is None
            continue
        confidence, accuracy = float(confidences[inside].mean()), float(right[inside].float().mean())
        assert (each.confidence, each.accuracy) == (pytest.approx(confidence), pytest.approx(accuracy))
        error += each.count / 200 * abs(accuracy - confidence)
    assert result.error == pytest.approx(error)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    confidences = [number / 5 for number in (2, 3, 4, 5)]
    bins = calibration(torch.zeros(4, dtype=torch.int64), rows_of(confidences), bins=5).bins
    assert [each.count for each in bins] == [0, 1, 1, 1, 1]
    assert all(below.high == above.low for below, above in itertools.pairwise(bins))


def test_an_evaluation_has_its_own_and_without_image_or_bin_there_is_none() -> None:
    labels, rows = torch.tensor([0, 0, 1]), rows_of([0.5, 0.7, 0.9])
    evaluation = Evaluation(tuple("abcd"), labels, rows, ["", "", ""])
    assert evaluation.calibration(4) == calibration(labels, rows, 4)
    assert len(evaluation.calibration().bins) == 15
    with pytest.raises(InputError, match="no image"):
        calibration(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    with pytest.raises(InputError, match="at least 1 bin"):
        calibration(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), bins=0)
