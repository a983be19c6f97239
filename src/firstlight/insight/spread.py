"""How far runs of one recipe lie apart, and what that says of their mean."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass

from firstlight.errors import InputError


@dataclass(frozen=True)
class Spread:
    """One number, such as the accuracy, of several runs that differ in their seed alone."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("there is no value whose mean could be taken", "Give at least one run.")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation of one run; None where there is only one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean, by Student's t; None of a single run."""
        if self.sd is None:
            return None
        count = len(self.values)
        reach = student_quantile(count - 1) * self.sd / math.sqrt(count)
        return self.mean - reach, self.mean + reach


@functools.cache
def student_quantile(degrees: int, inside: float = 0.95) -> float:
    """Return the t between whose negative and itself Student's distribution has the share `inside`.

    degrees: of freedom, a whole number; of n values n - 1.
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
    """Return the probability of -t…t: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for number in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (number - 1) / number
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
