"""Calibration: whether a network's confidence equals its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstlight.errors import InputError


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is above `low` and at most `high`; the first bin includes 0.

    confidence, accuracy: means over these images, as fractions; None without images.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error, and the bins of the reliability diagram, the lowest first.

    error: the mean of |accuracy − confidence| over the bins, weighted by their images (Guo et al. 2017, arXiv
        1706.04599, section 2).
    """

    error: float
    bins: tuple[Bin, ...]


def calibration(labels: Tensor, probabilities: Tensor, bins: int = 15) -> Calibration:
    """Compute the expected calibration error over `bins` of equal width.

    labels: int64, N. probabilities: N×K, rows sum to 1; confidence is that of the predicted class. Raises
    InputError for less than one bin or no image.
    """
    if bins < 1:
        raise InputError(f"calibration needs at least 1 bin, not {bins}")
    if not len(labels):
        raise InputError("there is no image to compare confidence and accuracy on", "Give at least one.")
    confidence, predicted = probabilities.max(1)
    # Rounded as the confidences are, so that one on an edge equals it.
    edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(confidence.dtype)
    bin_index = torch.bucketize(confidence, edges)
    counts = torch.bincount(bin_index, minlength=bins)
    confidences = torch.bincount(bin_index, confidence.double(), minlength=bins)
    hits = torch.bincount(bin_index, (predicted == labels).double(), minlength=bins)
    error = float((hits - confidences).abs().sum()) / len(labels)
    rows = []
    for index, count in enumerate(counts.tolist()):
        means = [float(sums[index]) / count if count else None for sums in (confidences, hits)]
        rows.append(Bin(index / bins, (index + 1) / bins, count, *means))
    return Calibration(error, tuple(rows))
