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
from firstlight.training.race import Calibration, decide
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


def all_tops(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[float, float]]:
    """Return `top` of every setting whose runs are complete."""
    return {name: top(grid) for name, grid in grids(rows, "run").items() if len(grid) >= 9}


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


def trial_tops(name: str, rows: Iterable[Mapping[str, str]]) -> dict[int, list[float]]:
    """Return by the length of trials the best rate of each seed's, in octaves above 1, as a race fits it.

    Seeds whose trials learnt nothing, or were best at the edge of the grid, are left out.
    """
    certain = Calibration(shift=0.0, shift_sd=0.0, fit_sd=1e-3, usual_sd=1e3, worth=1e-9)
    found: dict[int, list[float]] = {}
    for steps in lr_regret.TRIAL_STEPS:
        grid = grids(rows, f"trial {steps}").get(name, {})
        for seed in range(lr_regret.SEEDS):
            trials = [
                Trial(rate, steps, scores[seed], math.log(10))
                for rate, scores in grid.items()
                if seed in scores
            ]
            if len(trials) == len(lr_regret.ALL[name].rates):
                answer = decide(trials, trials[0].rate, steps, certain)
                if answer.verdict == "found":
                    found.setdefault(steps, []).append(math.log2(answer.peak_lr))
    return found


def calibrated(rows: list[measure.Row], without: str = "") -> Calibration:
    """Return what settings other than one say, of trials of at least a tenth of the run."""
    tops = {
        name: top(grid) for name, grid in grids(rows, "run").items() if len(grid) >= 9 and name != without
    }
    shifts, scatter = [], []
    for name, (octaves, _) in tops.items():
        total, own = lr_regret.total_steps(name), []
        for steps, found in trial_tops(name, rows).items():
            if 10 * steps >= total and len(found) > 1:
                centre = statistics.mean(found)
                own.append((centre - octaves) / math.log2(total / steps))
                scatter += [each - centre for each in found]
        if own:
            shifts.append(own[-1])  # of the longest trials
    errors = [octaves - math.log2(usual(name, tops)) for name, (octaves, _) in tops.items()]
    return Calibration(
        shift=round(statistics.median(shifts), 2) if shifts else 0.3,
        shift_sd=round(statistics.stdev(shifts), 2) if len(shifts) > 2 else 0.3,
        fit_sd=round(_deviation(scatter), 2),
        usual_sd=round(_deviation(errors), 2),
        curvature=round(statistics.median(bend for _, bend in tops.values()), 1),
    )


def _deviation(values: list[float]) -> float:
    return max(math.sqrt(statistics.mean(value**2 for value in values)), 0.2) if values else 1.0


def main() -> None:
    measure.parser(__doc__).parse_args()
    rows = measure.read_rows(Path(lr_regret.TABLE))
    tops = all_tops(rows)
    for name, (octaves, bend) in tops.items():
        total = lr_regret.total_steps(name)
        raced = "; ".join(
            f"{steps} steps {2 ** statistics.mean(found):.2g}"
            for steps, found in trial_tops(name, rows).items()
        )
        start = usual(name, tops)
        print(f"{name:36} {total} steps: best {2**octaves:.2g}, {bend:.1f} points an octave from it")
        print(f"{'':36} usual, by the others, {start:.2g}; trials of {raced or 'any length learn nothing'}")
    print(calibrated(rows))


if __name__ == "__main__":
    main()
