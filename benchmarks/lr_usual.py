"""The least-squares fit behind `optimizers.UsualRate`: log2 of the best rate by optimizer, batch and length.

python -m benchmarks.lr_usual     print the fit, and how far each setting is from it when it is left out

A ridge regression: each coefficient is drawn towards what the literature expects (the rate of SGD grows with
the square root of the batch, arXiv 1711.00489; the best rate falls with the length, arXiv 2409.19913). The
package holds the factors and powers rounded by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import lr_regret, measure
from benchmarks.lr_calibration import all_tops

OPTIMIZERS = ("SGD", "AdamW", "Muon")
NOISE = 0.7  # octaves by which the best rate of a setting scatters about the fit, about
PRIORS = ((-1.7, 3.0), (-7.4, 3.0), (-3.3, 3.0), (0.5, 0.25), (-0.25, 0.2), (-1.0, 1.0))
"""Mean and standard deviation of each coefficient, in the order of `Point.features`."""


@dataclass(frozen=True)
class Point:
    """A setting whose best rate is known, in octaves above 1."""

    name: str
    optimizer: str
    batch_size: int
    steps: int
    is_plain: bool
    octaves: float

    @property
    def features(self) -> list[float]:
        """One for the optimizer, octaves of the batch and the length, and whether there is no batch norm."""
        which = [float(self.optimizer == name) for name in OPTIMIZERS]
        return [*which, math.log2(self.batch_size / 128), math.log2(self.steps / 1000), float(self.is_plain)]


PUBLISHED = (
    Point("cifar10.assignment", "SGD", 512, 2328, False, math.log2(0.4)),
    Point("cifar10.fast", "Muon", 500, 1000, False, math.log2(0.1)),
    Point("cifar10.assignment_plus", "Muon", 512, 2328, False, math.log2(0.07)),
)


def measured() -> list[Point]:
    """Return the best rates of lr_regret.py's settings, without those that were kept apart."""
    tops = all_tops(measure.read_rows(Path(lr_regret.TABLE)))
    points = []
    for name, (octaves, _) in tops.items():
        if lr_regret.ALL[name] in lr_regret.SETTINGS:
            recipe = lr_regret.ALL[name].recipe
            kind, steps = type(recipe.optimizer).__name__, lr_regret.total_steps(name)
            points.append(Point(name, kind, recipe.batch_size, steps, name.startswith("plain"), octaves))
    return points


def fit(points: Sequence[Point]) -> npt.NDArray[np.float64]:
    """Return the coefficients of `Point.features`."""
    means, deviations = np.array(PRIORS).T
    features = np.array([point.features for point in points]) / NOISE
    targets = np.array([point.octaves for point in points]) / NOISE
    matrix, values = np.vstack([features, np.diag(1 / deviations)]), np.append(targets, means / deviations)
    coefficients: npt.NDArray[np.float64] = np.linalg.lstsq(matrix, values, rcond=None)[0]
    return coefficients


def main() -> None:
    measure.parser(__doc__).parse_args()
    points = [*measured(), *PUBLISHED]
    coefficients = fit(points)
    for name, octaves in zip(OPTIMIZERS, coefficients, strict=False):
        print(f"{name:6} {2**octaves:.4f} at batch 128 and 1,000 steps")
    batch, steps, plain = coefficients[3:]
    print(f"power of the batch {batch:.2f}, of the steps {steps:.2f}; no batch norm × {2**plain:.2f}")
    for left_out in points:
        others = fit([point for point in points if point is not left_out])
        error = float(np.array(left_out.features) @ others) - left_out.octaves
        print(f"{left_out.name:36} best {2**left_out.octaves:.3g}, the others say {error:+.1f} octaves")


if __name__ == "__main__":
    main()
