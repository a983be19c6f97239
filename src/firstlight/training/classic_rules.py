"""The rules by which other finders read a range test's curve: for comparison, none of them is used.

Each takes the rates and the smoothed losses of a range test, and returns a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest over the rate's logarithm (Smith 2017, and many since)."""
    slopes = np.gradient(np.asarray(losses), np.log(rates))
    return float(rates[int(slopes.argmin())])


def minimum_over_ten(rates: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate at which the loss is least (fast.ai's course)."""
    return float(rates[int(np.argmin(losses))]) / 10


def valley(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The middle of the longest fall, small rises within it left out (fastai's default since 2021)."""
    lengths = [1] * len(losses)
    for end, loss in enumerate(losses):
        longer = (lengths[before] + 1 for before in range(end) if losses[before] > loss)
        lengths[end] = max(longer, default=1)
    end = int(np.argmax(lengths))
    return float(rates[round(end - lengths[end] / 2)])


def slide(rates: Sequence[float], losses: Sequence[float], width: int = 15, flat: float = 0.005) -> float:
    """The left end of the last interval over which the slope stays the same (Novak's interval slide rule)."""
    slopes = np.gradient(np.asarray(losses))
    for right in range(len(losses) - 1, width, -1):
        if abs(slopes[right] - slopes[right - width]) <= flat:
            return float(rates[right - width])
    return float(rates[0])


RULES: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "steepest": steepest,
    "valley": valley,
    "minimum / 10": minimum_over_ten,
    "slide": slide,
}


def classic_rates(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Return what each rule answers on a curve; nothing where it has less than three points."""
    return {name: rule(rates, losses) for name, rule in RULES.items()} if len(rates) > 2 else {}
