"""The logistic head: its optimum, its choice of strength and of mirror images, its curve, its calibration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.streams import stream
from firstlight.training.head import (
    LogisticHead,
    Point,
    advice,
    fit_logistic,
    inverse_temperature,
    stratified,
    views,
)


def clouds(count: int = 120, classes: int = 3, size: int = 12, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Return N×D features about one centre a class, and labels."""
    draws = stream(0, "clouds")
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=draws)
    return centres[labels] + noise * torch.randn(count, size, generator=draws), labels


def six(features: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Return the six views of features, the mirrored ones as given or equal to the others."""
    other = features if mirrored is None else mirrored
    return torch.stack([features, other, features, other, features, other])


def test_the_gradient_at_the_fitted_head_is_zero() -> None:
    features, labels = clouds()
    weight, bias = fit_logistic(features, labels, 3, 0.1)
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    scale = features.double().std(0, correction=0).mean()
    loss = F.cross_entropy(F.linear(features.double(), weight, bias), labels)
    loss = loss + 0.05 * (weight * scale).square().sum()
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(float(each.abs().max()) for each in gradients) < 1e-3


def test_the_same_features_give_the_same_head_to_the_bit() -> None:
    features, labels = clouds()
    first, second = (LogisticHead()(six(features), labels, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert first.curve == second.curve


def test_strength_is_the_best_on_held_out_images() -> None:
    features, labels = clouds(60, noise=3.0)
    fit = LogisticHead(strengths=(1e-4, 1.0))(six(features), labels, 3)
    assert fit.accuracies[fit.strength] == max(fit.accuracies.values())
    assert float((fit.probabilities.argmax(1) == labels).double().mean()) == fit.accuracies[fit.strength]


def test_mirror_images_of_another_class_are_not_learned_from_and_equal_ones_are() -> None:
    features, labels = clouds(150, noise=0.5)
    elsewhere = features[torch.arange(150).roll(1)]  # what a mirrored b is: a d
    off = LogisticHead()(six(features, elsewhere), labels, 3)
    assert off.mirror is False
    assert off.mirror_accuracies is not None and off.mirror_accuracies[0] > off.mirror_accuracies[1] + 0.3
    assert LogisticHead()(six(features), labels, 3).mirror is True
    forced = LogisticHead(flip="on")(six(features, elsewhere), labels, 3)
    assert forced.mirror is True and forced.mirror_accuracies is None


def test_the_learning_curve_rises_and_its_last_point_is_the_cross_validated_accuracy() -> None:
    features, labels = clouds(200, noise=2.0, size=40)
    fit = LogisticHead()(six(features), labels, 3)
    sizes = [point.images for point in fit.curve]
    assert sizes == sorted(sizes) and sizes[-1] == 160
    assert fit.curve[-1].accuracy == fit.accuracies[fit.strength] > fit.curve[0].accuracy


def test_the_advice_follows_the_end_of_the_curve() -> None:
    assert "twice as many photos would likely help again, by up to 15 points" in advice(
        [Point(80, 0.6), Point(160, 0.75)]
    )
    assert "hardly help" in advice([Point(800, 0.9), Point(1600, 0.9)])
    assert "too few" in advice([Point(3, 0.5)])


def test_a_temperature_undoes_a_factor_on_calibrated_logits() -> None:
    draws = stream(0, "calibrated")
    logits = 2 * torch.randn(20_000, 4, generator=draws)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draws).squeeze(1)
    assert inverse_temperature(4 * logits, labels) == pytest.approx(0.25, rel=0.05)


def test_folds_hold_as_many_of_each_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    fold = stratified(labels, 5, seed=3)
    for number in range(5):
        assert torch.bincount(labels[fold == number]).tolist() == [4, 2, 1]


def test_views_are_image_mirror_image_and_four_corners() -> None:
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    shown = views(images)
    assert len(shown) == 6 and {tuple(each.shape) for each in shown} == {(2, 3, 16, 16)}
    assert torch.equal(shown[1], images.flip(3))
    assert shown[2][0, 0, 0, 0] == images[0, 0, 0, 0] and shown[5][0, 0, -1, 0] == images[0, 0, -1, -1]


@pytest.mark.parametrize(
    "wrong", [{"strengths": ()}, {"strengths": (-1.0,)}, {"folds": 1}, {"flip": "maybe"}]
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LogisticHead(**wrong)  # type: ignore[arg-type]
