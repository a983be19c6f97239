"""What the runs and trials of lr_regret.csv say of a race, with or without one of the settings.

python -m benchmarks.lr_calibration     print the numbers that the package holds
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks import lr_regret, measure
from firstlight.training.optimizers import usual_lr
from firstlight.training.race import LEAST_LEARNT, Calibration, Race, decide, race
from firstlight.training.trials import Trial

Grid = dict[float, dict[int, float]]
"""By rate and seed: an accuracy, or a score."""

WITHIN = 0.04
"""Rates within this of the best mean accuracy say where the best rate lies, and how fast accuracy falls."""


def grids(rows: Iterable[Mapping[str, str]], kind: str) -> dict[str, Grid]:
    """Return the rows of one kind by setting."""
    column = "accuracy" if kind.startswith("run") else "score"
    found: dict[str, Grid] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["kind"] == kind:
            found[row["setting"]][float(row["rate"])][int(row["seed"])] = float(row[column])
    return {name: dict(sorted(grid.items())) for name, grid in found.items()}


def means(grid: Grid) -> dict[float, float]:
    return {rate: statistics.mean(values.values()) for rate, values in grid.items()}


def top(grid: Grid) -> tuple[float, float]:
    """Return the best rate in octaves above 1, and the points lost one octave from it: a parabola's."""
    accuracies = means(grid)
    best = max(accuracies.values())
    near = [rate for rate, value in accuracies.items() if value > best - WITHIN]
    if len(near) < 3:
        order = sorted(accuracies, key=accuracies.__getitem__)
        near = sorted(order[-3:])
    octaves = np.log2(near)
    bend, slope, _ = np.polyfit(octaves, [100 * accuracies[rate] for rate in near], 2)
    if bend >= 0:  # as many rates as were tried are equally good
        return float(math.log2(max(accuracies, key=accuracies.__getitem__))), 0.1
    return float(np.clip(-slope / (2 * bend), octaves[0], octaves[-1])), float(-bend)


def usual(name: str, tops: Mapping[str, tuple[float, float]]) -> float:
    """Return the usual rate for a setting, from the other settings with its optimizer.

    The powers of batch and length are the package's; only the factor is measured.
    """
    recipe = lr_regret.ALL[name].recipe
    kind = type(recipe.optimizer)
    factors = [
        tops[other][0]
        - math.log2(usual_lr(recipe.optimizer, own.recipe.batch_size, lr_regret.total_steps(other)))
        for other, own in lr_regret.ALL.items()
        if other != name and other in tops and type(own.recipe.optimizer) is kind
    ]
    rate = usual_lr(recipe.optimizer, recipe.batch_size, lr_regret.total_steps(name))
    return rate * 2 ** (statistics.median(factors) if factors else 0.0)


def raced_top(name: str, rows: Iterable[Mapping[str, str]], start: float) -> list[tuple[float, int]]:
    """Return the best rate of each seed's race, in octaves above 1, and the steps of its trials.

    The race is carried out over the recorded trials, from the recorded rate next to `start`.
    """
    kinds = {steps: grids(rows, f"trial {steps}").get(name, {}) for steps in lr_regret.TRIAL_STEPS}
    found = []
    for seed in range(lr_regret.SEEDS):

        def run(rate: float, steps: int, seed: int = seed) -> Trial:
            grid = kinds.get(steps, {})
            if not grid:
                return Trial(rate, steps, math.inf, math.log(10))
            nearest = min(grid, key=lambda there: abs(math.log(there / rate)))
            off = abs(math.log2(nearest / rate)) > 0.6
            score = math.inf if off else grid[nearest].get(seed, math.inf)
            return Trial(nearest, steps, score, math.log(10))

        finder, total = Race(), lr_regret.total_steps(name)
        grid = next(iter(kinds.values()))
        first = min(grid, key=lambda there: abs(math.log(there / start)))
        trials, _ = race(run, first, finder.least_steps, total // 4, finder._budget(total))
        certain = Calibration(shift=0.0, race_sd=1e-3, usual_sd=1e3, worth=1e-9)
        learnt = max(trial.chance - trial.score for trial in trials)
        if learnt >= LEAST_LEARNT:
            answer = decide(trials, first, total, certain)
            found.append((math.log2(answer.peak_lr), trials[0].steps))
    return found


def calibrated(rows: list[measure.Row], without: str = "") -> Calibration:
    """Return what settings other than one say: medians, and deviations that single outliers do not make."""
    runs = grids(rows, "run")
    tops = {name: top(grid) for name, grid in runs.items() if len(grid) >= 9}
    others = [name for name in tops if name != without]
    shifts, usual_errors = [], []
    for name in others:
        start = usual(name, {key: value for key, value in tops.items() if key != without})
        usual_errors.append(tops[name][0] - math.log2(start))
        shifts += [
            (octaves - tops[name][0], math.log2(lr_regret.total_steps(name) / steps))
            for octaves, steps in raced_top(name, rows, start)
        ]
    shift = statistics.median(apart / doublings for apart, doublings in shifts) if shifts else 0.3
    residuals = [apart - shift * doublings for apart, doublings in shifts]
    return Calibration(
        shift=shift,
        race_sd=_deviation(residuals),
        usual_sd=_deviation(usual_errors),
        curvature=statistics.median(tops[name][1] for name in others),
    )


def _deviation(values: list[float]) -> float:
    return max(math.sqrt(statistics.mean(value**2 for value in values)), 0.2) if values else 1.0


def main() -> None:
    measure.parser(__doc__).parse_args()
    rows = measure.read_rows(Path(lr_regret.TABLE))
    runs = grids(rows, "run")
    tops = {name: top(grid) for name, grid in runs.items() if len(grid) >= 9}
    for name, (octaves, bend) in tops.items():
        start = usual(name, tops)
        raced = ", ".join(f"{2**at:.2g} ({steps})" for at, steps in raced_top(name, rows, start))
        print(
            f"{name:36} best {2**octaves:.3g}, {bend:.2f} points an octave; usual {start:.2g}; raced {raced}"
        )
    print(calibrated(rows))


if __name__ == "__main__":
    main()
