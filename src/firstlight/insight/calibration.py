"""Whether a network is right as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.errors import InputError


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies above `low`, at most at `high`; the first bin holds 0 too.

    confidence, accuracy: means over its images, as fractions; None where it has none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error, and the bins of the reliability diagram, the lowest first.

    error: the mean of |accuracy − confidence| over the bins, each weighted by its images (Guo et al.
    2017, arXiv 1706.04599, section 2).
    """

    error: float
    bins: tuple[Bin, ...]


def calibration(labels: Tensor, probabilities: Tensor, bins: int = 15) -> Calibration:
    """Sort images into `bins` of equal width by the confidence in their predicted class.

    labels: int64, N, at least one. probabilities: N×K, rows sum to 1. Raises InputError for less
    than one bin or no image.
    """
    if bins < 1:
        raise InputError(f"calibration needs at least 1 bin, not {bins}")
    if not len(labels):
        raise InputError("there is no image whose confidence could be compared", "Give at least one.")
    confidence, predicted = probabilities.max(1)
    # Rounded as the confidences are, so that one that lies on an edge is found to lie on it.
    edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(confidence.dtype)
    place = torch.bucketize(confidence, edges)
    counts = torch.bincount(place, minlength=bins)
    said = torch.bincount(place, confidence.double(), minlength=bins)
    right = torch.bincount(place, (predicted == labels).double(), minlength=bins)
    error = float((right - said).abs().sum()) / len(labels)
    rows = zip(counts.tolist(), said.tolist(), right.tolist(), strict=True)
    return Calibration(
        error,
        tuple(
            Bin(
                number / bins,
                (number + 1) / bins,
                count,
                sum_said / count if count else None,
                hits / count if count else None,
            )
            for number, (count, sum_said, hits) in enumerate(rows)
        ),
    )
