"""Two networks on the same images: which images changed, and whether the difference is noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.intervals import mcnemar, paired_interval

SIGNIFICANCE = 0.05
"""A difference with a p-value below it counts as more than noise."""


@dataclass(frozen=True)
class Change:
    """An image that only one evaluation classified correctly. true, before, after: indices of classes."""

    index: int
    name: str
    true: int
    before: int
    after: int

    @property
    def fixed(self) -> bool:
        return self.after == self.true


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two evaluations of the same images, image by image.

    It compares two trained networks. To compare two recipes, train several seeds of each.
    """

    before: Evaluation
    after: Evaluation

    @cached_property
    def fixed(self) -> Tensor:
        """Indices, ascending, of the images that were wrong before and are right after: int64."""
        return torch.nonzero(~self.before.correct & self.after.correct).flatten()

    @cached_property
    def broken(self) -> Tensor:
        """Indices, ascending, of the images that were right before and are wrong after: int64."""
        return torch.nonzero(self.before.correct & ~self.after.correct).flatten()

    @cached_property
    def still_wrong(self) -> Tensor:
        """Indices, ascending, of the images that are wrong in both: int64."""
        return torch.nonzero(~self.before.correct & ~self.after.correct).flatten()

    @property
    def difference(self) -> float:
        """Accuracy after less accuracy before, as a fraction."""
        return (len(self.fixed) - len(self.broken)) / len(self.before.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """The difference's 95 % interval, see `paired_interval`."""
        return paired_interval(len(self.fixed), len(self.broken), len(self.before.labels))

    @cached_property
    def p_value(self) -> float:
        """The probability of a split of the changed images at least as uneven by chance, see `mcnemar`."""
        return mcnemar(len(self.fixed), len(self.broken))

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise: a p-value below 0.05."""
        return self.p_value < SIGNIFICANCE

    def changes(self, count: int | None = None) -> tuple[Change, ...]:
        """Return the changed images by index, the first `count` or all.

        A name comes from the evaluation that has the image wrong: a run folder keeps the names of mistakes.
        """
        indices = torch.cat([self.fixed, self.broken]).sort().values[:count].tolist()
        before, after = self.before, self.after
        rows = []
        for index in indices:
            true, old, new = (int(t[index]) for t in (before.labels, before.predictions, after.predictions))
            names = before.names if old != true else after.names
            rows.append(Change(index, names[index], true, old, new))
        return tuple(rows)

    def __str__(self) -> str:
        """Say in two or three lines which is better, with what certainty, and what changed."""
        low, high = self.interval
        chance = "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.2g}"
        numbers = (
            f"{self.before.accuracy:.2%} and {self.after.accuracy:.2%} of {len(self.before.labels):,} images "
            f"are right, a difference of {100 * self.difference:+.2f} points (95 % interval "
            f"{100 * low:+.2f} to {100 * high:+.2f}; exact McNemar test, {chance})."
        )
        counts = (
            f"{_images(len(self.fixed))} fixed (wrong in the first, right in the second), "
            f"{len(self.broken):,} broken (the other way round), {len(self.still_wrong):,} wrong in both."
        )
        if not self.differs:
            return f"no difference beyond noise: {numbers}\n{counts}"
        better = "second" if self.difference > 0 else "first"
        caution = "This is about two trained networks; to compare two recipes, train several seeds of each."
        return f"the {better} is better: {numbers}\n{counts}\n{caution}"


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Compare two evaluations of the same images, which differ in the network or in TTA.

    Raises InputError where the number of images, the labels or the classes differ.
    """
    if before.classes != after.classes:
        raise InputError("the two evaluations have different classes", "Compare runs on the same data.")
    if len(before.labels) != len(after.labels):
        raise InputError(
            f"the two evaluations are of {len(before.labels):,} and of {len(after.labels):,} images",
            "Evaluate both networks on the same images.",
        )
    if not torch.equal(before.labels, after.labels):
        unequal = int((before.labels != after.labels).sum())
        raise InputError(
            f"the two evaluations have different labels at {unequal:,} of {len(before.labels):,} images",
            "Evaluate both networks on the same images, in the same order.",
        )
    return Comparison(before, after)


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
