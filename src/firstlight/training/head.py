"""A linear classifier on the features of a frozen network: multinomial logistic regression.

What cross-validation on the training images says of it comes with it: the strength of the regularisation,
out-of-sample probabilities, whether mirror images belong to their class, and a learning curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.streams import stream

MIRRORED = (False, True, False, True, False, True)
"""Which of the views that `views` returns are mirrored."""
_CROP = 7 / 8
_SHARES = (0.125, 0.25, 0.5, 1.0)
MOST_COMPARED = 2000
"""Images, at most, on which strengths are compared; the chosen one is then fitted to all."""
FEWEST_ASKED = 40
"""Images below which nothing is concluded from mirror images."""


def views(images: Tensor) -> list[Tensor]:
    """Return the views of N×C×H×W images that a head learns from: image, mirror image, and four corners.

    A corner has 7/8 of each side, and is enlarged again; the second and the fourth are mirrored.
    """
    height, width = images.shape[-2:]
    h, w = math.ceil(_CROP * height), math.ceil(_CROP * width)
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    result = [images, images.flip(3)]
    for number, (top, left) in enumerate(corners):
        part = images[:, :, top : top + h, left : left + w]
        part = F.interpolate(part.float(), size=(height, width), mode="bilinear").to(images.dtype)
        result.append(part.flip(3) if number % 2 else part)
    return result


@dataclass(frozen=True)
class Point:
    """Accuracy on held-out training images of heads that were fitted to `images` images of the others."""

    images: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class HeadFit:
    """A fitted head, and what cross-validation on the training images says.

    weight: fp32, K×D, and bias: fp32, K, for features as they come. strength: of the regularisation, chosen.
    accuracies: of held-out images by strength. probabilities: fp32, N×K, out of sample, of the image itself.
    mirror: whether mirror images were learned from. mirror_accuracies: of held-out images and of their mirror
    images, for a head that saw no mirror image; none where this was not asked.
    curve: accuracy by the number of training images.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    accuracies: dict[float, float]
    probabilities: Tensor
    mirror: bool
    mirror_accuracies: tuple[float, float] | None
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class LogisticHead:
    """Fits the linear layer of a frozen network by logistic regression, instead of by steps of an optimizer.

    strengths: L2 penalties on the weights of scaled features, of which cross-validation chooses.
    folds: of the cross-validation, stratified.
    flip: whether mirror images are learned from: on, off, or auto, which asks held-out training images.
    tune: whether the last blocks are trained too afterwards, see `training.tuning`: on, off, or auto, which
        does for 60 to 5,000 images. They are kept only where they are better on held-out training images.
    tune_rate: the highest learning rate of that.
    """

    strengths: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    folds: int = 5
    flip: str = "auto"
    tune: str = "auto"
    tune_rate: float = 3e-3

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0 or not math.isfinite(sum(self.strengths)):
            raise InputError(f"strengths must be positive numbers, not {self.strengths}")
        if self.folds < 2:
            raise InputError(f"folds must be at least 2, not {self.folds}")
        for key, value in (("flip", self.flip), ("tune", self.tune)):
            if value not in ("auto", "on", "off"):
                raise InputError(f"{key} must be auto, on or off, not {value!r}")
        if not 0 < self.tune_rate <= 1:
            raise InputError(f"tune_rate must be above 0 and at most 1, not {self.tune_rate:g}")

    def __call__(self, features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> HeadFit:
        """Fit a head. features: fp32, V×N×D, of the views that `views` returns, in their order.

        Deterministic for a seed. Raises InputError for fewer images than two.
        """
        if len(labels) < 2:
            raise InputError(f"{len(labels)} image cannot be cross-validated", "Add pictures.")
        fold = stratified(labels, min(self.folds, len(labels)), seed)
        mirror, asked = self.flip != "off", None
        if self.flip == "auto" and len(labels) >= FEWEST_ASKED:
            middle = sorted(self.strengths)[len(self.strengths) // 2]
            mirror, asked = asked_of_mirror_images(features, labels, classes, fold, middle)
        used = [view for view in range(len(features)) if mirror or not MIRRORED[view]]
        judged = judged_view(features, mirror)
        few = _subset(labels, fold, MOST_COMPARED / len(labels))
        # The corners are left out here: they change the accuracy, hardly the best strength.
        rows = features[[view for view in used if view < 2]]
        logits, accuracies = {}, {}
        for each in self.strengths:
            out = _held_out(rows[:, few], judged[few], labels[few], classes, fold[few], each)
            logits[each] = out
            accuracies[each] = float((out.argmax(1) == labels[few]).double().mean())
        # The stronger one wins a tie: it is the simpler classifier.
        strength = max(accuracies, key=lambda each: (accuracies[each], each))
        out = logits[strength]
        if len(few) < len(labels):
            out = _held_out(rows, judged, labels, classes, fold, strength)
            accuracies[strength] = float((out.argmax(1) == labels).double().mean())
        scale = inverse_temperature(out, labels)
        weight, bias = fit_logistic(features[used].flatten(0, 1), labels.repeat(len(used)), classes, strength)
        curve = _curve(rows, judged, labels, classes, fold, strength, accuracies[strength])
        probabilities = (scale * out).softmax(1)
        return HeadFit(
            scale * weight, scale * bias, strength, accuracies, probabilities, mirror, asked, curve
        )


def asked_of_mirror_images(
    features: Tensor, labels: Tensor, classes: int, fold: Tensor, strength: float
) -> tuple[bool, tuple[float, float]]:
    """Return whether mirror images belong to their class, and the accuracy of held-out images and of theirs.

    features: fp32, of the images and of their mirror images, 2×N×D; a head that saw no mirror image is asked.
    """
    few = _subset(labels, fold, MOST_COMPARED / len(labels))
    right = torch.zeros(2, len(few), dtype=torch.bool)
    for number in fold.unique().tolist():
        inside = fold[few] == number
        fit = fit_logistic(features[0][few][~inside], labels[few][~inside], classes, strength)
        for view in (0, 1):
            logits = F.linear(features[view][few][inside], *fit)
            right[view, inside] = logits.argmax(1) == labels[few][inside]
    lost, gained = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    # A sign test on the images that mirroring changes, and a loss that matters.
    harms = lost - gained > 2.5 * math.sqrt(lost + gained) and lost - gained > 0.02 * len(few)
    return not harms, (float(right[0].double().mean()), float(right[1].double().mean()))


def stratified(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each image, int64, N; every fold holds as many of each class as any other, ± 1."""
    order = torch.randperm(len(labels), generator=stream(seed, "head folds"))
    order = order[labels[order].argsort(stable=True)]
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(len(order)) % folds
    return numbers


def fit_logistic(features: Tensor, labels: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Return weight, fp32, K×D, and bias, fp32, K, that minimise cross-entropy + strength/2 · |weight|².

    features: fp32, N×D; the penalty is on weights of features that are centred and of a mean deviation of 1.
    The minimum is unique up to a constant in the bias. At most 40 steps of L-BFGS approach it from
    zero: there is no random number in it.
    """
    mean = features.mean(0)
    # One scale for all: a feature that hardly varies between images should not count as much as another.
    scale = 1 / features.std(0, correction=0).mean().clamp_min(1e-6)
    rows = (features - mean) * scale
    weight = torch.zeros(classes, rows.shape[1], device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=40, tolerance_grad=1e-4, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(rows, weight, bias), labels)
            value = value + strength / 2 * weight.square().sum()
            value.backward()
        return float(value.detach())

    optimizer.step(loss)
    with torch.no_grad():
        scaled = weight * scale
        return scaled, bias - scaled @ mean


def judged_view(features: Tensor, mirror: bool) -> Tensor:
    """Return the features that the network gives, N×D: with `mirror` the mean with the mirror image."""
    return features[:2].mean(0) if mirror else features[0]


def inverse_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the factor on out-of-sample logits that calibrates them; Guo et al. 2017 (arXiv 1706.04599)."""
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rows = logits.double()
    optimizer = torch.optim.LBFGS([value], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            # A weak prior keeps the factor finite where every image is right.
            result = F.cross_entropy(value.exp() * rows, labels) + value.square().sum() / len(labels)
            result.backward()
        return float(result.detach())

    optimizer.step(loss)
    return float(value.detach().exp())


def _held_out(
    rows: Tensor, judged: Tensor, labels: Tensor, classes: int, fold: Tensor, strength: float
) -> Tensor:
    """Return logits, fp32, N×K, of `judged` (N×D), each from a head fitted to `rows` without that image."""
    result = torch.empty(len(labels), classes)
    for number in fold.unique().tolist():
        inside = fold == number
        fit = fit_logistic(
            rows[:, ~inside].flatten(0, 1), labels[~inside].repeat(len(rows)), classes, strength
        )
        result[inside] = F.linear(judged[inside], *fit).cpu()
    return result


def _subset(labels: Tensor, fold: Tensor, share: float) -> Tensor:
    """Return the indices of about `share` of each class, in their order; at least one of each."""
    if share >= 1:
        return torch.arange(len(labels))
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        kept[members[: max(1, round(share * len(members)))]] = True
    return torch.nonzero(kept).flatten()


def _curve(
    features: Tensor,
    judged: Tensor,
    labels: Tensor,
    classes: int,
    fold: Tensor,
    strength: float,
    whole: float,
) -> tuple[Point, ...]:
    """Return accuracy on held-out images by the number of the others that a head was fitted to."""
    few = _subset(labels, fold, MOST_COMPARED / len(labels))
    points: list[Point] = []
    for share in _SHARES:
        right, sizes = 0, []
        if share == 1 and len(few) == len(labels):
            count = round(len(labels) * (1 - 1 / len(fold.unique())))
            points.append(Point(count, whole))
            continue
        for number in fold.unique().tolist():
            inside = fold[few] == number
            train, test = few[~inside], few[inside]
            train = train[_subset(labels[train], fold[train], share)]
            rows = features[:, train].flatten(0, 1)
            fit = fit_logistic(rows, labels[train].repeat(len(features)), classes, strength)
            right += int((F.linear(judged[test], *fit).argmax(1) == labels[test]).sum())
            sizes.append(len(train))
        points.append(Point(round(sum(sizes) / len(sizes)), right / len(few)))
    distinct = {point.images: point for point in points}
    return tuple(sorted(distinct.values(), key=lambda point: point.images))


def advice(curve: Sequence[Point]) -> str:
    """Say whether more photos would help, from the last two points of a learning curve."""
    if len(curve) < 2:
        return "There are too few images to tell whether more photos would help."
    before, last = curve[-2:]
    gain, factor = last.accuracy - before.accuracy, last.images / max(before.images, 1)
    what = (
        f"From {before.images:,} to {last.images:,} images the accuracy on held-out training images went "
        f"from {before.accuracy:.1%} to {last.accuracy:.1%}"
    )
    # Over one set of images, which many heads judge: a cautious error of the difference.
    error = math.sqrt(max(last.accuracy * (1 - last.accuracy), 0.0) / max(last.images * 1.25, 1))
    if gain > max(0.01, error):
        many = "twice" if round(factor) == 2 else f"{factor:.0f} times"
        return f"{what}: {many} as many photos would likely help again, by up to {100 * gain:.0f} points."
    if gain > 0.005:
        return f"{what}: more photos would help little; whether at all, so few images cannot tell."
    return f"{what}: more photos of the same kind would hardly help."
