"""Evaluation: what a network predicts for each image of a set, and the scores that follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.data.batches import in_order
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.calibration import Calibration, calibration
from firstlight.insight.intervals import wilson_interval
from firstlight.machine.machine import Machine
from firstlight.models.network import evaluating, images_at_once


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class, as fractions. count: the images of this class.

    precision: the correct share of the images predicted as this class; None where there are none.
    recall: the correct share of the images of this class; None where there are none.
    f1: their harmonic mean, 2 × correct / (count + predicted); None where both numbers are 0.
    """

    name: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Pair:
    """The number of images of class `true` that were predicted as class `predicted`, both by index."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network's predictions for a set of images. Raises InputError where the set is empty.

    labels: int64, N. probabilities: fp32, N×K, rows sum to 1. names: one per image.
    tta: whether the probabilities are means over several views of each image; see `evaluate`.
    """

    classes: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    names: Sequence[str]
    tta: bool = False

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise InputError("there is no image to evaluate", "Give at least one.")

    @cached_property
    def predictions(self) -> Tensor:
        """The most probable class of each image: int64, N."""
        return self.probabilities.argmax(1)

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy of each image, without label smoothing: fp64, N."""
        of_label = self.probabilities.double().gather(1, self.labels[:, None]).squeeze(1)
        return -of_label.clamp_min(torch.finfo(torch.float32).tiny).log()

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @cached_property
    def correct(self) -> Tensor:
        """Whether the predicted class is the label: bool, N."""
        return self.predictions == self.labels

    @property
    def right(self) -> int:
        """The number of images that are classified correctly."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of images that are classified correctly."""
        return self.right / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval."""
        return wilson_interval(self.right, len(self.labels))

    @cached_property
    def confusion(self) -> Tensor:
        """Confusion matrix: counts, int64, K×K, the true class by row and the predicted one by column."""
        count = len(self.classes)
        pairs = self.labels * count + self.predictions
        return torch.bincount(pairs, minlength=count * count).view(count, count)

    @cached_property
    def mistakes(self) -> Tensor:
        """Indices of the misclassified images, the highest loss first: int64."""
        wrong = torch.nonzero(~self.correct).flatten()
        return wrong[self.losses[wrong].argsort(descending=True, stable=True)]

    @cached_property
    def per_class(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of each class, in the order of the classes."""
        right = self.confusion.diagonal().tolist()
        counts, predicted = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        return tuple(
            ClassScore(name, count, _share(hits, calls), _share(hits, count), _share(2 * hits, count + calls))
            for name, hits, count, calls in zip(self.classes, right, counts, predicted, strict=True)
        )

    def top_pairs(self, count: int = 5) -> tuple[Pair, ...]:
        """Return the pairs of classes that are confused most often, at most `count`; ties by class."""
        classes = len(self.classes)
        wrong = self.confusion.clone().fill_diagonal_(0).flatten()
        cells = wrong.argsort(descending=True, stable=True)[: max(count, 0)].tolist()
        pairs = (Pair(cell // classes, cell % classes, int(wrong[cell])) for cell in cells)
        return tuple(pair for pair in pairs if pair.count)

    def calibration(self, bins: int = 15) -> Calibration:
        """Return the expected calibration error and its bins; see `insight.calibration`."""
        return calibration(self.labels, self.probabilities, bins)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Views:
    """The views of an image that test-time augmentation (TTA) averages over; by default the image alone.

    mirror: whether the mirror image is a view.
    shift: pixels; half of the weight goes to the same views moved towards the top left and the bottom right,
        edges mirrored (Jordan 2024, arXiv 2404.00498, section 3.5); 0 moves none.
    below: only an image whose highest probability, of itself alone, is below this has other views; 1: every.
    """

    mirror: bool = False
    shift: int = 0
    below: float = 1.0

    def __len__(self) -> int:
        return (2 if self.mirror else 1) * (3 if self.shift else 1)

    def __call__(self, images: Tensor) -> list[tuple[Tensor, float]]:
        """Return the views of N×C×H×W images with their weights, which add up to 1."""
        shifted = [(images, 1.0)]
        if self.shift:
            height, width = images.shape[2:]
            padded = F.pad(images, (self.shift,) * 4, mode="reflect")
            padded = padded.contiguous(memory_format=torch.channels_last)
            starts = (0, 2 * self.shift)
            corners = (padded[:, :, start : start + height, start : start + width] for start in starts)
            shifted = [(images, 0.5), *((corner, 0.25) for corner in corners)]
        if not self.mirror:
            return shifted
        return [(view, weight / 2) for image, weight in shifted for view in (image, image.flip(3))]


def evaluate(
    model: nn.Module,
    images: ImageSet,
    machine: Machine,
    *,
    views: Views = Views(),
    batch_size: int | None = None,
) -> Evaluation:
    """Classify every image of a set; the model's mode and statistics are left as they were.

    views: the views of an image whose probabilities are averaged. Raises InputError where the set is empty.
    """
    if not len(images):
        raise InputError("there is no image to evaluate", "Give at least one.")
    rows = []
    with inference(model), machine.autocast():
        for batch in in_order(images, batch_size or images_at_once(images.images.shape), machine):
            rows.append(_probabilities(model, batch, views).cpu())
    rows = machine.ranks.interleave(rows)
    return Evaluation(images.classes, images.labels, torch.cat(rows), images.names, len(views) > 1)


def _probabilities(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    """Return the class probabilities of a batch, fp32, N×K."""
    alone = torch.softmax(model(images).float(), dim=1)
    if len(views) == 1:
        return alone
    # Every image where `below` is 1, since a probability can round to 1; `...` takes all, without a copy.
    unsure = torch.nonzero(alone.amax(1) < views.below).flatten() if views.below < 1 else ...
    chosen = images[unsure].contiguous(memory_format=torch.channels_last)
    if not len(chosen):
        return alone
    (_, share), *others = views(chosen)
    parts = [weight * torch.softmax(model(view).float(), dim=1) for view, weight in others]
    alone[unsure] = torch.stack([share * alone[unsure], *parts]).sum(0)
    return alone


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation without gradients, and back afterwards."""
    with evaluating(model), torch.no_grad():
        yield
