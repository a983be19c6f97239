"""Confidence intervals and tests: of a proportion, of a difference of two, and of a mean over seeds."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstlight.errors import InputError


@dataclass(frozen=True)
class Spread:
    """One number, such as the accuracy, of several runs that differ only in their seed."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("there is no value to take the mean of", "Give at least one run.")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean, by Student's t; None for a single run."""
        if self.sd is None:
            return None
        count = len(self.values)
        reach = student_quantile(count - 1) * self.sd / math.sqrt(count)
        return self.mean - reach, self.mean + reach


def wilson_interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927). z: the normal quantile, 95 % by default."""
    if count < 1:
        raise InputError(f"a proportion of {count} images has no interval", "Give at least one image.")
    share = right / count
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def mcnemar(fixed: int, broken: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947; for classifiers Dietterich 1998).

    If neither network is better, a changed image is as likely fixed as broken, so the smaller of both numbers
    is binomial; its lower tail is doubled, at most to 1.
    """
    total, smaller = fixed + broken, min(fixed, broken)
    # Logarithms, since the terms themselves leave the range of fp64 beyond a thousand images.
    counts = torch.arange(smaller + 1, dtype=torch.float64)
    terms = math.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    return min(1.0, 2 * math.exp(float(torch.logsumexp(terms, 0)) - total * math.log(2)))


def paired_interval(fixed: int, broken: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the interval of a difference between two proportions of the same `count` images.

    Wald's interval after half an image is added to each of the four cells (Agresti and Min 2005,
    Statistics in Medicine 24:729, "Wald+2"). z: the normal quantile, 95 % by default.
    """
    size = count + 2
    middle = (fixed - broken) / size
    reach = z * math.sqrt((fixed + broken + 1) / size - middle * middle) / math.sqrt(size)
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of a paired t-test: is the mean of these differences zero?

    None where they have no spread: of fewer than two, or of equal ones that are not zero.
    """
    spread = Spread(tuple(differences))
    # Equal differences of fractions differ in their last bits, which is no spread.
    if spread.sd is None or math.isclose(min(differences), max(differences), rel_tol=1e-9, abs_tol=1e-12):
        return 1.0 if spread.sd is not None and math.isclose(spread.mean, 0, abs_tol=1e-12) else None
    t = abs(spread.mean) / (spread.sd / math.sqrt(len(differences)))
    return max(0.0, 1 - _share_inside(t, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down rule, in the same order (Holm 1979).

    The chance that any of them falls below a level, though no difference exists, is at most that level.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@functools.cache
def student_quantile(degrees: int, inside: float = 0.95) -> float:
    """Return the quantile t of Student's distribution: a share `inside` of it lies between -t and t.

    degrees: of freedom, n - 1 for n values. Raises InputError for less than one, or a share outside 0…1.
    """
    if degrees < 1 or not 0 < inside < 1:
        raise InputError(f"Student's t has no quantile for {degrees} degrees of freedom and a share {inside}")
    low, high = 0.0, 1.0
    while _share_inside(high, degrees) < inside:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _share_inside(middle, degrees) < inside else (low, middle)
    return high


def _share_inside(t: float, degrees: int) -> float:
    """Return the probability between -t and t (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for number in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (number - 1) / number
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
