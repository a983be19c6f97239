"""An evaluation says how good a network is, and leaves it alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import CPU, TinyNet, digest, global_random_states, image_set
from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.insight.evaluation import Evaluation, Views, evaluate, inference
from firstlight.insight.intervals import wilson_interval


def evaluation(rows: list[list[float]], labels: list[int]) -> Evaluation:
    classes = tuple("abcdef"[: len(rows[0])])
    return Evaluation(classes, torch.tensor(labels), torch.tensor(rows), [str(n) for n in range(len(rows))])


@pytest.mark.parametrize(
    ("right", "count", "z"),
    [(9420, 10000, 1.959964), (3, 7, 1.0), (1, 500, 2.575829), (8, 10, 1.959964), (10, 10, 1.959964)],
)
def test_wilson_interval_ends_where_the_score_test_does(right: int, count: int, z: float) -> None:
    for end in wilson_interval(right, count, z):
        assert abs(right / count - end) == pytest.approx(
            z * math.sqrt(end * (1 - end) / count), rel=1e-9, abs=1e-7
        )
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    assert wilson_interval(0, 10)[0] == 0.0


def test_numbers_of_a_small_evaluation() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]
    found = evaluation(rows, [0, 0, 1, 1])
    assert found.predictions.tolist() == [0, 2, 1, 2]
    assert (found.right, found.accuracy) == (2, 0.5)
    losses = [-math.log(p) for p in (0.7, 0.1, 0.5, 0.1)]
    assert found.losses.tolist() == pytest.approx(losses, rel=1e-6)
    assert found.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert found.interval == wilson_interval(2, 4)
    assert found.confusion.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]], "true rows, predicted columns"


def test_mistakes_come_worst_first_and_ties_in_order() -> None:
    rows = [[0.4, 0.6], [0.1, 0.9], [0.4, 0.6], [0.9, 0.1], [0.3, 0.7], [0.0, 1.0]]
    found = evaluation(rows, [0] * 6)
    assert found.mistakes.tolist() == [5, 1, 4, 0, 2]
    assert math.isfinite(found.loss), "also where a probability is 0"


def whole(model: TinyNet, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.softmax(model(images), dim=1)


@pytest.mark.parametrize("batch_size", [5, 8, 500])
def test_batches_give_what_all_images_at_once_give(batch_size: int) -> None:
    images, model = image_set(24), TinyNet().eval()
    found = evaluate(model, images, CPU, batch_size=batch_size)
    pixels = normalise(images.images, images.mean, images.std)
    torch.testing.assert_close(found.probabilities, whole(model, pixels), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.labels, images.labels)
    assert (found.classes, list(found.names), found.tta) == (images.classes, list(images.names), False)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(24))


@pytest.mark.parametrize("shift", [0, 2])
def test_tta_is_the_mean_over_mirror_images_and_moved_ones(shift: int) -> None:
    images, model = image_set(12), TinyNet().eval()
    model.conv.padding = (0, 0)  # so that moving the image matters
    found = evaluate(model, images, CPU, views=Views(mirror=True, shift=shift), batch_size=5)
    pixels = normalise(images.images, images.mean, images.std)
    rows = torch.tensor([2, 1, 0, 1, 2, 3, 4, 5])  # the image moved down by two, its edge mirrored
    down = pixels[:, :, rows][:, :, :, rows]
    up = pixels[:, :, 7 - rows.flip(0)][:, :, :, 7 - rows.flip(0)]
    views = [(pixels, 0.25), (down, 0.125), (up, 0.125)] if shift else [(pixels, 0.5)]
    expected = sum(weight * (whole(model, x) + whole(model, x.flip(3))) for x, weight in views)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-5, atol=1e-6)
    fewer = evaluate(model, images, CPU, views=Views(mirror=bool(shift)))
    assert found.tta and not torch.allclose(found.probabilities, fewer.probabilities)


def test_a_lower_precision_gives_nearly_the_same() -> None:
    images, model = image_set(12), TinyNet()
    found = evaluate(model, images, replace(CPU, precision="bf16"))
    assert found.probabilities.dtype == torch.float32
    torch.testing.assert_close(
        found.probabilities, evaluate(model, images, CPU).probabilities, rtol=0, atol=0.02
    )


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model, before = TinyNet().train(), global_random_states()
    model.norm.eval()
    kept = digest(model.state_dict().values())
    evaluate(model, image_set(12), CPU, views=Views(mirror=True))
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert digest(model.state_dict().values()) == kept
    assert all(parameter.grad is None for parameter in model.parameters())
    assert global_random_states() == before


def test_inference_ends_with_an_error_too() -> None:
    model = TinyNet().train()
    with pytest.raises(ZeroDivisionError), inference(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert model.training
    assert torch.is_grad_enabled()
