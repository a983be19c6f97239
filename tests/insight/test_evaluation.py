"""An evaluation says how good a network is, and leaves it alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import CPU, TinyNet, digest, global_random_states, image_set
from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation, Pair, Views, evaluate, inference
from firstlight.insight.intervals import wilson_interval
from firstlight.machine.streams import stream


def evaluation(rows: list[list[float]], labels: list[int]) -> Evaluation:
    classes = tuple("abcdef"[: len(rows[0])])
    return Evaluation(classes, torch.tensor(labels), torch.tensor(rows), [str(n) for n in range(len(rows))])


def test_numbers_of_a_small_evaluation() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]
    result = evaluation(rows, [0, 0, 1, 1])
    assert result.predictions.tolist() == [0, 2, 1, 2]
    assert (result.right, result.accuracy) == (2, 0.5)
    losses = [-math.log(p) for p in (0.7, 0.1, 0.5, 0.1)]
    assert result.losses.tolist() == pytest.approx(losses, rel=1e-6)
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert result.interval == wilson_interval(2, 4)
    assert result.confusion.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]], "true rows, predicted columns"
    assert math.isfinite(evaluation([[0.0, 1.0]], [0]).loss), "of a probability of zero"
    # Mistakes come worst first, and ties in order.
    rows = [[0.4, 0.6], [0.1, 0.9], [0.4, 0.6], [0.9, 0.1], [0.3, 0.7]]
    assert evaluation(rows, [0, 0, 0, 0, 0]).mistakes.tolist() == [1, 4, 0, 2]


def with_predictions(labels: list[int], predictions: list[int], classes: int) -> Evaluation:
    return evaluation(torch.eye(classes)[predictions].tolist(), labels)


@pytest.mark.parametrize("seed", range(3))
def test_scores_per_class_are_what_counting_gives(seed: int) -> None:
    generator = stream(seed, "scores")
    labels = torch.randint(0, 5, (50,), generator=generator)
    labels[labels == 3] = 0  # no image of class 3, no prediction of class 4
    predictions = torch.randint(0, 4, (50,), generator=generator).tolist()
    pairs = list(zip(labels.tolist(), predictions, strict=True))
    scores = with_predictions(labels.tolist(), predictions, 5).per_class
    assert [score.name for score in scores] == list("abcde")
    for number, score in enumerate(scores):
        hits = sum(true == predicted == number for true, predicted in pairs)
        count, called = labels.tolist().count(number), predictions.count(number)
        assert score.count == count
        assert score.precision == (pytest.approx(hits / called) if called else None)
        assert score.recall == (pytest.approx(hits / count) if count else None)
        if hits and score.precision and score.recall:
            assert score.f1 == pytest.approx(2 / (1 / score.precision + 1 / score.recall))
    assert (scores[3].count, scores[3].recall, scores[3].f1) == (0, None, 0.0)
    assert (scores[4].precision, scores[4].recall, scores[4].f1) == (None, 0.0, 0.0)
    neither = with_predictions([0, 1], [0, 0], 3).per_class[2]
    assert (neither.count, neither.precision, neither.recall, neither.f1) == (0, None, None, None)


def test_top_pairs_are_the_most_frequent_mistakes_and_nothing_else() -> None:
    labels = [0] * 5 + [1] * 3 + [2] * 4
    result = with_predictions(labels, [2, 2, 2, 0, 1, 0, 0, 1, 2, 1, 1, 2], 3)
    expected = (Pair(0, 2, 3), Pair(1, 0, 2), Pair(2, 1, 2), Pair(0, 1, 1))
    assert result.top_pairs() == expected
    assert result.top_pairs(2) == expected[:2]
    assert result.top_pairs(0) == () == with_predictions([0, 1], [0, 1], 2).top_pairs()


def test_no_image_is_bad_input() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InputError, match="no image to evaluate"):
        evaluate(TinyNet(), image_set(4).subset(nothing), CPU)
    with pytest.raises(InputError, match="no image to evaluate"):
        Evaluation(("a", "b"), nothing, torch.zeros(0, 2), [])


def whole(model: TinyNet, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.softmax(model(images), dim=1)


@pytest.mark.parametrize("batch_size", [5, 8, 500])
def test_batches_give_what_all_images_at_once_give(batch_size: int) -> None:
    images, model = image_set(24), TinyNet().eval()
    result = evaluate(model, images, CPU, batch_size=batch_size)
    pixels = normalise(images.images, images.mean, images.std)
    torch.testing.assert_close(result.probabilities, whole(model, pixels), rtol=1e-5, atol=1e-6)
    assert torch.equal(result.labels, images.labels)
    assert (result.classes, list(result.names), result.tta) == (images.classes, list(images.names), False)
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(24))


def test_tta_is_the_weighted_mean_of_mirrored_and_moved_views() -> None:
    images, model = image_set(12), TinyNet().eval()
    model.conv.padding = (0, 0)  # so that moving the image matters
    pixels = normalise(images.images, images.mean, images.std)
    rows = torch.tensor([2, 1, 0, 1, 2, 3, 4, 5])  # the image moved down by two, its edge mirrored
    down = pixels[:, :, rows][:, :, :, rows]
    up = pixels[:, :, 7 - rows.flip(0)][:, :, :, 7 - rows.flip(0)]
    one, moved = [(pixels, 1.0)], [(pixels, 0.5), (down, 0.25), (up, 0.25)]
    cases = {
        Views(): one,
        Views(mirror=True): [(pixels, 0.5), (pixels.flip(3), 0.5)],
        Views(shift=2): moved,
        Views(mirror=True, shift=2): [(x, w / 2) for view, w in moved for x in (view, view.flip(3))],
    }
    results = []
    for views, expected in cases.items():
        result = evaluate(model, images, CPU, views=views, batch_size=5)
        mean = sum(weight * whole(model, view) for view, weight in expected)
        torch.testing.assert_close(result.probabilities, mean, rtol=1e-5, atol=1e-6)
        assert (len(views), result.tta) == (len(expected), len(expected) > 1)
        assert not any(torch.allclose(result.probabilities, other) for other in results)
        results.append(result.probabilities)


@pytest.mark.parametrize("below", [0.01, 0.31, 0.35, 1.0])
def test_only_images_of_which_the_network_is_unsure_have_other_views(below: float) -> None:
    images, model = image_set(24), TinyNet().eval()
    alone, all_views = (evaluate(model, images, CPU, views=views) for views in (Views(), Views(mirror=True)))
    found = evaluate(model, images, CPU, views=Views(mirror=True, below=below), batch_size=5)
    unsure = alone.probabilities.amax(1) < below
    assert unsure.any() == (below > 0.01) and unsure.all() == (below == 1), "the thresholds tell images apart"
    expected = torch.where(unsure[:, None], all_views.probabilities, alone.probabilities)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-5, atol=1e-6)
    assert found.tta


def test_a_lower_precision_gives_nearly_the_same() -> None:
    images, model = image_set(12), TinyNet()
    result = evaluate(model, images, replace(CPU, precision="bf16"))
    assert result.probabilities.dtype == torch.float32
    exact = evaluate(model, images, CPU).probabilities
    torch.testing.assert_close(result.probabilities, exact, rtol=0, atol=0.02)


def test_evaluation_leaves_the_model_as_it_was_and_so_does_an_error() -> None:
    model, before = TinyNet().train(), global_random_states()
    model.norm.eval()
    weights = digest(model.state_dict().values())
    evaluate(model, image_set(12), CPU, views=Views(mirror=True))
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert digest(model.state_dict().values()) == weights
    assert all(parameter.grad is None for parameter in model.parameters())
    assert global_random_states() == before
    with pytest.raises(ZeroDivisionError), inference(model):
        assert not (model.training or torch.is_grad_enabled())
        raise ZeroDivisionError
    assert model.training and torch.is_grad_enabled()
