"""Scores per class, pairs of confused classes, and calibration, against counting by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from tiny import CPU, TinyNet, image_set

from firstlight.errors import InputError
from firstlight.insight.calibration import calibration
from firstlight.insight.evaluation import Evaluation, Pair, evaluate
from firstlight.insight.intervals import wilson_interval
from firstlight.machine.streams import stream


def evaluation(labels: list[int], predictions: list[int], classes: int) -> Evaluation:
    """An evaluation that calls each image as told."""
    rows = torch.full((len(labels), classes), 0.1)
    rows[torch.arange(len(labels)), torch.tensor(predictions)] = 0.9
    names = [f"image {number}" for number in range(len(labels))]
    return Evaluation(tuple("abcdefgh"[:classes]), torch.tensor(labels), rows, names)


def drawn(count: int, classes: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Labels and predictions, drawn; the last class is never called, the one before never there."""
    generator = stream(seed, "scores")
    labels = torch.randint(0, classes, (count,), generator=generator)
    predictions = torch.randint(0, classes - 1, (count,), generator=generator)
    labels[labels == classes - 2] = 0
    return labels.tolist(), predictions.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_scores_per_class_are_what_counting_gives(seed: int) -> None:
    labels, predictions = drawn(50, 5, seed)
    pairs = list(zip(labels, predictions, strict=True))
    scores = evaluation(labels, predictions, 5).per_class
    assert [score.name for score in scores] == list("abcde")
    for number, score in enumerate(scores):
        hits = sum(true == said == number for true, said in pairs)
        assert score.count == labels.count(number)
        called = [true for true, said in pairs if said == number]
        assert score.precision == (pytest.approx(hits / len(called)) if called else None)
        there = [said for true, said in pairs if true == number]
        assert score.recall == (pytest.approx(hits / len(there)) if there else None)
        if hits and score.precision and score.recall:
            harmonic = 2 / (1 / score.precision + 1 / score.recall)
            assert score.f1 == pytest.approx(harmonic)
    assert (scores[3].count, scores[3].recall, scores[3].f1) == (0, None, 0.0), "called, but never there"
    assert (scores[4].precision, scores[4].recall, scores[4].f1) == (None, 0.0, 0.0), "there, never called"


def test_a_class_that_is_neither_there_nor_called_has_no_score() -> None:
    score = evaluation([0, 1], [0, 0], 3).per_class[2]
    assert (score.count, score.precision, score.recall, score.f1) == (0, None, None, None)


def test_top_pairs_are_the_most_frequent_mistakes_and_nothing_else() -> None:
    labels = [0] * 5 + [1] * 3 + [2] * 4
    predictions = [2, 2, 2, 0, 1, 0, 0, 1, 2, 1, 1, 2]
    found = evaluation(labels, predictions, 3)
    expected = (Pair(0, 2, 3), Pair(1, 0, 2), Pair(2, 1, 2), Pair(0, 1, 1))
    assert found.top_pairs() == expected
    assert found.top_pairs(2) == expected[:2]
    assert found.top_pairs(0) == () == evaluation([0, 1], [0, 1], 2).top_pairs()


def rows_of(confidences: list[float], classes: int = 4) -> torch.Tensor:
    """Rows whose first class has these probabilities, and shares the rest among the others."""
    first = torch.tensor(confidences)
    rows = ((1 - first) / (classes - 1))[:, None].repeat(1, classes)
    rows[:, 0] = first
    return rows


def test_an_error_of_nought_where_confidence_is_accuracy() -> None:
    assert calibration(torch.tensor([0, 0, 0, 1]), rows_of([0.75] * 4)).error == pytest.approx(0, abs=1e-7)
    assert calibration(torch.tensor([1, 2]), rows_of([1.0, 1.0])).error == pytest.approx(1)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_calibration_is_what_sorting_by_hand_gives(bins: int) -> None:
    generator = stream(3, "calibration")
    rows = torch.softmax(3 * torch.randn(200, 4, generator=generator), 1)
    labels = torch.randint(0, 4, (200,), generator=generator)
    found = calibration(labels, rows, bins)
    # An edge that fp32 cannot hold is the nearest number that it can.
    edges = [float(torch.tensor(Fraction(n, bins).__float__(), dtype=torch.float32)) for n in range(bins + 1)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(rows, labels.tolist(), strict=True):
        confidence = float(row.max())
        (place,) = (n for n in range(bins) if edges[n] < confidence <= edges[n + 1])
        members[place].append((confidence, int(row.argmax()) == label))
    error = 0.0
    for each, inside in zip(found.bins, members, strict=True):
        assert each.count == len(inside)
        if not inside:
            assert each.confidence is None and each.accuracy is None
            continue
        confidence = sum(c for c, _ in inside) / len(inside)
        accuracy = sum(right for _, right in inside) / len(inside)
        assert (each.confidence, each.accuracy) == (pytest.approx(confidence), pytest.approx(accuracy))
        error += len(inside) / 200 * abs(accuracy - confidence)
    assert found.error == pytest.approx(error)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    confidences = [number / 5 for number in (2, 3, 4, 5)]
    bins = calibration(torch.zeros(4, dtype=torch.int64), rows_of(confidences), bins=5).bins
    assert [each.count for each in bins] == [0, 1, 1, 1, 1]
    assert all(below.high == above.low for below, above in itertools.pairwise(bins))


def test_an_evaluation_gives_its_own_calibration() -> None:
    found = evaluation([0, 0, 1], [0, 1, 1], 3)
    assert found.calibration(4) == calibration(found.labels, found.probabilities, 4)
    assert len(found.calibration().bins) == 15


def test_no_image_is_bad_input_and_no_division_by_zero() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InputError, match="no image to evaluate"):
        evaluate(TinyNet(), image_set(4).subset(nothing), CPU)
    with pytest.raises(InputError, match="no image to evaluate"):
        Evaluation(("a", "b"), nothing, torch.zeros(0, 2), [])
    with pytest.raises(InputError, match="no image"):
        calibration(nothing, torch.zeros(0, 2))
    with pytest.raises(InputError, match="no interval"):
        wilson_interval(0, 0)
    with pytest.raises(InputError, match="at least 1 bin"):
        calibration(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), bins=0)
