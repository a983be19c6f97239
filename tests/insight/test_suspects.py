"""Doubtful labels are found among images whose true class is known."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import global_random_states
from torch import Tensor

from firstlight.errors import InputError
from firstlight.insight.suspects import suspects
from firstlight.machine.streams import stream


def world(count: int, classes: int, *, sharpness: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities of a calibrated network, N×K, and true classes drawn from them."""
    generator = stream(seed, "world")
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), torch.randint(0, classes, (count,), generator=generator)] += sharpness
    rows = torch.softmax(1.5 * logits, 1)
    return rows, torch.multinomial(rows, 1, generator=generator).squeeze(1)


def flipped(true: Tensor, classes: int, share: float, *, seed: int = 0) -> Tensor:
    """Labels of which a share was replaced by another class."""
    generator = stream(seed, "flipped")
    places = torch.randperm(len(true), generator=generator)[: round(share * len(true))]
    labels = true.clone()
    labels[places] += torch.randint(1, classes, (len(places),), generator=generator)
    return labels % classes


def average_precision(order: Tensor, wrong: Tensor) -> float:
    hits = wrong[order].double()
    return float((hits * hits.cumsum(0) / torch.arange(1, len(hits) + 1)).sum() / hits.sum())


def confident(true: Tensor, classes: int) -> Tensor:
    """Probabilities of a network that is always right, and sure of it by 0.9 to 0.9999."""
    sure = 1 - 10 ** (-1 - 3 * torch.rand(len(true), 1, generator=stream(0, "sure")))
    rows = ((1 - sure) / (classes - 1)).repeat(1, classes)
    return rows.scatter(1, true[:, None], sure)


def test_what_contradicts_a_network_that_knows_is_found_counted_and_named() -> None:
    true = torch.arange(300) % 5
    labels = flipped(true, 5, 0.04)
    wrong = labels != true
    found = suspects(labels, confident(true, 5))
    assert set(found.order[:12].tolist()) == set(torch.nonzero(wrong).flatten().tolist())
    assert found.count == pytest.approx(12, abs=3)
    assert torch.equal(found.suggested, true)
    assert float(found.scores[wrong].median()) > 0 and bool((found.scores[~wrong] < 0).all())


def test_every_image_is_ranked_once_ties_in_order_and_nothing_that_was_given_is_changed() -> None:
    rows, true = world(200, 4)
    found = suspects(flipped(true, 4, 0.1), rows)
    assert sorted(found.order.tolist()) == list(range(200))
    ranked = found.scores[found.order]
    assert bool((ranked[:-1] >= ranked[1:]).all())
    assert {found.order.dtype, found.suggested.dtype} == {torch.int64} and found.scores.dtype == torch.float32
    tied = suspects(torch.tensor([0, 1] * 4), torch.tensor([[0.75, 0.25], [0.25, 0.75]] * 4))
    assert tied.order.tolist() == list(range(8))
    given = rows.clone().requires_grad_()
    before = global_random_states()
    again = suspects(flipped(true, 4, 0.1), given)
    assert torch.equal(given, rows) and given.grad is None and global_random_states() == before
    assert torch.equal(found.scores, again.scores) and not again.scores.requires_grad


def test_the_score_is_the_log_odds_of_an_error_where_the_model_holds() -> None:
    rows, true = world(20_000, 5)
    labels = flipped(true, 5, 0.1)
    found = suspects(labels, rows)
    # Among images that score about as high, the wrong ones are about as many as the odds say.
    for low, high in ((-4.0, -2.0), (-2.0, 0.0), (0.0, 2.0), (2.0, 4.0)):
        inside = (found.scores >= low) & (found.scores < high)
        share = float((labels != true)[inside].double().mean())
        said = float(torch.sigmoid(found.scores[inside]).mean())
        assert int(inside.sum()) > 100 and abs(said - share) < 0.08


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25])
def test_the_count_is_near_the_truth_where_the_model_holds(share: float) -> None:
    rows, true = world(4000, 6)
    labels = flipped(true, 6, share)
    assert suspects(labels, rows).count == pytest.approx(4000 * share, rel=0.25)


def test_the_interval_of_errors_at_random_is_narrow_and_holds_the_truth() -> None:
    inside = []
    for seed in range(6):
        rows, true = world(2000, 6, seed=seed)
        low, high = suspects(flipped(true, 6, 0.1, seed=seed), rows).interval
        assert 0 < low < high < 400 and high < 2 * low
        inside.append(low <= 200 <= high)
    assert sum(inside) >= 4


def confused(true: Tensor, rows: Tensor, share: float, *, flat: float = 0.8) -> Tensor:
    """Labels of which a share is the wrong answer of a weaker network, of flatter probabilities."""
    generator = stream(3, "weaker")
    answers = torch.multinomial((flat * rows.log()).softmax(1), 1, generator=generator).squeeze(1)
    errors = torch.nonzero(answers != true).flatten()
    errors = errors[torch.randperm(len(errors), generator=generator)[: round(share * len(true))]]
    return true.index_copy(0, errors, answers[errors])


def recalibrated(labels: Tensor, rows: Tensor) -> Tensor:
    """Probabilities as of a network that has learned from such labels: calibrated to them."""
    factor = min(
        torch.linspace(0.3, 1.2, 46).tolist(),
        key=lambda each: float(torch.nn.functional.cross_entropy(each * rows.log(), labels)),
    )
    return (factor * rows.log()).softmax(1)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_errors_that_are_the_networks_own_confusions_are_counted_within_a_factor_of_two(share: float) -> None:
    rows, true = world(4000, 6, sharpness=2.5)
    labels = confused(true, rows, share)
    found = suspects(labels, recalibrated(labels, rows))
    low, high = found.interval
    wrong = 4000 * share
    assert int((labels != true).sum()) == wrong
    assert wrong / 2 < found.count < 2 * wrong and low <= wrong <= high
    assert high > 5 * low, "nothing in labels and probabilities says how many they are"


def test_the_ranking_of_confusions_is_not_behind_the_plain_margin_or_self_confidence() -> None:
    rows, true = world(6000, 5, sharpness=2.5)
    labels = confused(true, rows, 0.05)
    rows = recalibrated(labels, rows)
    wrong = labels != true
    given = rows.gather(1, labels[:, None]).squeeze(1)
    others = rows.scatter(1, labels[:, None], 0).amax(1)
    ours = average_precision(suspects(labels, rows).order, wrong)
    for baseline in (-given, others - given):
        assert ours > 0.97 * average_precision(baseline.argsort(descending=True, stable=True), wrong)


def test_a_network_that_errs_or_knows_nothing_names_no_label_and_gives_a_wide_interval() -> None:
    rows, true = world(4000, 6, sharpness=2.0)
    assert int((rows.argmax(1) != true).sum()) > 800, "the network is bad, but says so"
    found = suspects(true, rows)
    assert not bool((found.scores > 0).any())
    assert found.interval[0] < 20 and found.interval[1] > 200
    rows, _ = world(600, 6)
    labels = torch.randint(0, 6, (600,), generator=stream(1, "any"))
    assert int((rows.argmax(1) != labels).sum()) > 450
    found = suspects(labels, rows)
    assert not bool((found.scores > 0).any())
    assert found.interval[0] <= 5 and found.interval[1] > 60


def test_the_scores_add_up_to_the_count_and_stand_in_the_order_of_the_ranking() -> None:
    rows, true = world(3000, 5)
    found = suspects(flipped(true, 5, 0.06), rows)
    assert float(found.scores.sigmoid().sum()) == pytest.approx(found.count, rel=0.02)
    assert found.interval[0] <= found.count <= found.interval[1]


def test_a_network_that_is_too_sure_ranks_and_counts_as_one_that_is_not() -> None:
    rows, true = world(3000, 5)
    labels = flipped(true, 5, 0.08)
    plain, sure = suspects(labels, rows), suspects(labels, torch.softmax(3 * rows.log(), 1))
    assert int((rows.argmax(1) != true).sum()) > 100
    assert sure.count == pytest.approx(plain.count, rel=0.03)
    first, also = (set(found.order[: plain.count].tolist()) for found in (plain, sure))
    assert len(first & also) >= 0.97 * plain.count


def test_a_class_that_the_network_is_never_sure_of_is_not_doubted_for_it() -> None:
    true = torch.arange(600) % 4
    rows = confident(true, 4)
    shy = true == 3
    rows[shy] = torch.tensor([0.5, 0.08, 0.07, 0.35])  # always called 0, and always labelled 3
    rows = (rows.log() + 0.3 * torch.randn(rows.shape, generator=stream(0, "shy"))).softmax(1)
    wrong = torch.nonzero(true == 1).flatten()[:20]
    labels = true.index_fill(0, wrong, 2)
    rows[wrong] = torch.tensor([0.03, 0.53, 0.41, 0.03])  # less clearly than the shy class by themselves
    gap = rows.amax(1) - rows.gather(1, labels[:, None]).squeeze(1)
    assert float(gap[shy].mean()) > float(gap[wrong].mean()), "the plain margin doubts the shy class first"
    found = suspects(labels, rows)
    assert set(wrong.tolist()) <= set(found.order[:40].tolist())
    assert float((found.suggested[shy] == 3).double().mean()) > 0.9


def test_it_is_not_behind_the_plain_margin_or_self_confidence_when_classes_differ_in_size() -> None:
    rows, true = world(6000, 5)
    # A network that was trained on balanced classes judges a set in which class 4 is rare.
    keep = (true != 4) | (torch.arange(6000) % 8 == 0)
    rows, true = rows[keep], true[keep]
    labels = flipped(true, 5, 0.05)
    wrong = labels != true
    given = rows.gather(1, labels[:, None]).squeeze(1)
    others = rows.scatter(1, labels[:, None], 0).amax(1)
    ours = average_precision(suspects(labels, rows).order, wrong)
    for baseline in (-given, others - given):
        assert ours > average_precision(baseline.argsort(descending=True, stable=True), wrong)


def test_half_precision_and_zeros_are_taken_as_they_come() -> None:
    rows, true = world(500, 4)
    whole, half = (suspects(flipped(true, 4, 0.05), given) for given in (rows, rows.half()))
    assert half.count == pytest.approx(whole.count, abs=1)
    certain = suspects(torch.tensor([0, 1, 1, 0]), torch.eye(2)[[0, 1, 1, 1]])
    assert certain.order[0] == 3 and bool(torch.isfinite(certain.scores).all())
    assert certain.suggested.tolist() == [0, 1, 1, 1]
    single = suspects(torch.tensor([1]), torch.tensor([[0.9, 0.1]]))
    assert single.order.tolist() == [0] and single.suggested.tolist() == [0] and single.count in (0, 1)


HALF = torch.full((3, 2), 0.5)
LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        (LABELS, torch.full((3,), 0.5), "N×K"),
        (LABELS, torch.ones(3, 2, dtype=torch.int64), "floating-point"),
        (LABELS[:2], HALF, "need int64 labels"),
        (LABELS.int(), HALF, "need int64 labels"),
        (torch.tensor([0, 2, 0]), HALF, "outside 0…1"),
        (torch.tensor([0, -1, 0]), HALF, "outside 0…1"),
        (LABELS[:0], HALF[:0], "no label to judge"),
        (LABELS * 0, torch.ones(3, 1), "no label to judge"),
        (LABELS, HALF * 3, "does not sum to 1"),
        (LABELS, HALF * math.nan, "a value outside 0…1"),
        (LABELS, torch.tensor([[1.5, -0.5]] * 3), "a value outside 0…1"),
    ],
)
def test_what_does_not_fit_is_bad_input(labels: Tensor, rows: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        suspects(labels, rows)
