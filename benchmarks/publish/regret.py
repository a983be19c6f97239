"""Print what the answers of the finders cost, from the tables of lr_regret.py and lr_answers.py.

    python -m benchmarks.publish.regret

Regret: mean final accuracy at the best rate of the grid minus that at the answer, in points. The best rate is
chosen by one half of the seeds and scored by the other, both ways, against the winner's curse. Between two
rates of the grid the accuracy is taken to be straight over the rate's logarithm; an answer below or above the
grid counts as its lowest or highest rate. The standard error is over seeds, of the paired differences.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping

from benchmarks import lr_answers, lr_regret, measure
from benchmarks.lr_calibration import Grid, grids
from benchmarks.publish.rows import Tables, read_tables, table
from firstlight.training.lr_finder import MIN_SHARE

FINDERS = (*lr_answers.OURS, *lr_answers.RULES)


def regret_of(grid: Grid, rate: float) -> tuple[float, float]:
    """Return (regret, its standard error) of an answer, in points.

    Rates far from the top were run from fewer seeds, so each rate's mean is over the seeds that it has.
    """
    seeds = sorted({seed for values in grid.values() for seed in values})
    halves = [seeds[::2], seeds[1::2]]
    there = _straight(grid, rate)
    differences = []
    for chosen_by, scored_by in (halves, halves[::-1]):
        best = max(grid, key=lambda each: _mean(grid[each], chosen_by))
        differences += [
            grid[best][seed] * 100 - there[seed] for seed in scored_by if seed in grid[best] and seed in there
        ]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.mean(differences), error


def _mean(values: Mapping[int, float], seeds: list[int]) -> float:
    found = [values[seed] for seed in seeds if seed in values]
    return statistics.mean(found) if found else -math.inf


def _straight(grid: Grid, rate: float) -> dict[int, float]:
    """Return the accuracy at a rate in points, by seed, of the seeds that both neighbours have."""
    rates = list(grid)
    rate = min(max(rate, rates[0]), rates[-1])
    above = next(index for index, each in enumerate(rates) if each >= rate * (1 - 1e-9))
    if math.isclose(rates[above], rate):
        return {seed: 100 * value for seed, value in grid[rates[above]].items()}
    low, high = rates[above - 1], rates[above]
    share = math.log(rate / low) / math.log(high / low)
    return {
        seed: 100 * ((1 - share) * grid[low][seed] + share * grid[high][seed])
        for seed in grid[low].keys() & grid[high].keys()
    }


def regret(tables: Tables) -> str:
    """Write the regret of each finder: a setting by row, a finder by column."""
    runs = grids(tables["lr_regret"], "run")
    answers: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for row in tables["lr_answers"]:
        answers[row["setting"], row["finder"]].append(float(row["rate"]) if row["rate"] else None)
    finders = [finder for finder in FINDERS if any(there == finder for _, there in answers)]
    asked = {name for name, _ in answers}
    columns: dict[str, list[float]] = defaultdict(list)
    lines = []
    for name in (each for each in lr_regret.ALL if each in runs and each in asked):
        cells = []
        for finder in finders:
            costs = [regret_of(runs[name], rate) for rate in answers[name, finder] if rate is not None]
            refused = sum(rate is None for rate in answers[name, finder])
            words = [f"{refused} refused"] if refused else []
            if costs:
                columns[finder].append(statistics.mean(cost for cost, _ in costs))
                error = statistics.mean(error for _, error in costs)
                words.insert(0, f"{columns[finder][-1]:.1f} ± {error:.1f}")
            cells.append(", ".join(words))
        best = max(runs[name], key=lambda rate: statistics.mean(runs[name][rate].values()))
        apart = " (kept apart)" if lr_regret.ALL[name] in lr_regret.KEPT_APART else ""
        lines.append(" | ".join([name + apart, f"{best:.2g}", *cells]))
    for words, summary in (("median", statistics.median), ("worst", max)):
        cells = [f"**{summary(columns[finder]):.1f}**" if columns[finder] else "" for finder in finders]
        lines.append(" | ".join([f"**{words}**", "", *cells]))
    return table(" | ".join(["setting", "best rate", *finders]), lines)


def shares(tables: Tables) -> str:
    """Write what another LRMIN changes: the mean difference of accuracy, over settings and seeds."""
    usual = grids(tables["lr_regret"], "run")
    kinds = dict.fromkeys(row["kind"] for row in tables["lr_regret"] if row["kind"].startswith("run, LRMIN"))
    lines = []
    for kind in sorted(kinds, key=lambda kind: float(kind.split()[-1])):
        means = []
        for name, grid in grids(tables["lr_regret"], kind).items():
            rate, values = next(iter(grid.items()))
            means.append(statistics.mean(100 * (values[seed] - usual[name][rate][seed]) for seed in values))
        error = statistics.stdev(means) / math.sqrt(len(means))
        cells = (
            f"{float(kind.split()[-1]):.1%} of LRMAX",
            str(len(means)),
            f"{statistics.mean(means):+.1f} ± {error:.1f}",
        )
        lines.append(" | ".join((*cells, f"{min(means):+.1f} to {max(means):+.1f}")))
    titles = f"LRMIN | settings | points beside {MIN_SHARE:.0%} of LRMAX | by setting"
    return table(titles, lines)


def methods(tables: Tables) -> str:
    """Write the accuracies of methods without a learning rate, beside those at the best rate of the grid."""
    runs = grids(tables["lr_regret"], "run")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in tables["lr_methods"]:
        found[row["setting"]][row["method"]].append(100 * float(row["accuracy"]))
    names = list(dict.fromkeys(row["method"] for row in tables["lr_methods"]))
    lines = []
    for setting, accuracies in found.items():
        best = 100 * max(statistics.mean(values.values()) for values in runs[setting].values())
        cells = [f"{statistics.mean(accuracies[name]):.1f} %" for name in names]
        lines.append(" | ".join([setting, f"{best:.1f} %", *cells]))
    return table(" | ".join(["setting", "best rate of the grid", *names]), lines)


def main() -> None:
    measure.parser(__doc__).parse_args()
    tables = read_tables()
    print(regret(tables), shares(tables), methods(tables), sep="\n\n")


if __name__ == "__main__":
    main()
