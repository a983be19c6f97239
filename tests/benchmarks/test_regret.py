"""The regret of an answer, and what trials say of runs, on rows whose numbers are known."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest

from benchmarks import lr_calibration, lr_regret
from benchmarks.lr_answers import SWEEPS
from benchmarks.publish.regret import regret, regret_of, shares
from firstlight.jobs.job import Job
from firstlight.machine.machine import Machine

NAME = lr_regret.SETTINGS[0].name
RATES = lr_regret.SETTINGS[0].rates


def accuracy(rate: float, optimum: float, points: float = 2.0) -> float:
    """An accuracy that falls by so many points an octave from the best rate, squared."""
    return 0.7 - points / 100 * math.log2(rate / optimum) ** 2


def rows(optimum: float, name: str = NAME, kind: str = "run", seeds: int = 4) -> list[dict[str, str]]:
    return [
        {"setting": name, "kind": kind, "seed": str(seed), "rate": str(rate), "accuracy": f"{value:.9f}"}
        for rate in lr_regret.ALL[name].rates
        for seed in range(seeds)
        for value in [accuracy(rate, optimum) + 0.01 * seed]
    ]


def test_the_regret_is_the_accuracy_lost_beside_the_best_rate() -> None:
    grid = lr_calibration.grids(rows(RATES[4]), "run")[NAME]
    assert regret_of(grid, RATES[4]) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert regret_of(grid, RATES[6])[0] == pytest.approx(8.0)
    # Straight between two rates of the grid, and as the last one beyond it.
    assert regret_of(grid, RATES[4] * 2**0.5)[0] == pytest.approx(1.0)
    assert regret_of(grid, RATES[-1] * 100)[0] == pytest.approx(2 * 4**2)


def test_the_best_rate_is_not_chosen_by_the_seeds_that_score_it() -> None:
    # Two rates that are equally good; each half of the seeds is lucky at another one. A half that scored its
    # own choice would find a regret of 0 and 10 points; the other half finds 0 and -10.
    lucky = {0: 0.8, 2: 0.8, 1: 0.7, 3: 0.7}
    grid = {0.1: dict(lucky), 0.2: {seed: 1.5 - value for seed, value in lucky.items()}}
    assert regret_of(grid, 0.1)[0] == pytest.approx(-5.0)


def test_the_table_has_a_line_for_each_setting_and_says_who_refused() -> None:
    answers = [
        {"setting": NAME, "finder": "race", "seed": "0", "rate": str(RATES[5])},
        {"setting": NAME, "finder": "range test", "seed": "0", "rate": ""},
    ]
    text = regret(defaultdict(list, {"lr_regret": rows(RATES[4]), "lr_answers": answers}))
    assert f"| {NAME} | {RATES[4]:.2g} | 2.0 ± 0.0 | 1 refused |" in text
    assert "| **worst** |  | **2.0** |  |" in text


def test_what_another_lrmin_changes() -> None:
    names = [setting.name for setting in lr_regret.SETTINGS[:2]]
    usual = [row for name in names for row in rows(lr_regret.ALL[name].rates[4], name)]
    lower = [
        {**row, "kind": "run, LRMIN 0.1", "accuracy": str(float(row["accuracy"]) - 0.01)}
        for row in usual
        if float(row["rate"]) in [lr_regret.ALL[name].rates[4] for name in names]
        and row["setting"] in names
        and math.isclose(float(row["rate"]), lr_regret.ALL[row["setting"]].rates[4])
    ]
    text = shares(defaultdict(list, {"lr_regret": [*usual, *lower]}))
    assert "| 10.0% of LRMAX | 2 | -1.0 ± 0.0 | -1.0 to -1.0 |" in text


def test_calibration_reads_the_best_rate_and_leaves_the_setting_itself_out() -> None:
    names = [setting.name for setting in lr_regret.SETTINGS if "sgd b128" in setting.name][:3]
    tables = [row for name in names for row in rows(0.13, name)]
    tops = lr_calibration.all_tops(tables)
    for octaves, points in tops.values():
        assert octaves == pytest.approx(math.log2(0.13), abs=0.05) and points == pytest.approx(2.0, rel=0.05)
    first = names[0]
    others = {name: top for name, top in tops.items() if name != first}
    moved = {**others, first: (5.0, 1.0)}
    assert lr_calibration.usual(first, moved) == lr_calibration.usual(first, others)
    assert lr_calibration.calibrated(tables, without=first).curvature == pytest.approx(2.0, rel=0.05)


def test_a_sweep_goes_up_to_the_end_that_its_package_sets() -> None:
    setting = lr_regret.ALL["resnet8 shapes500 sgd b32 e30"]
    train, test = lr_regret.Shapes(train=64, test=1).load()
    import torch

    job = Job.with_images(train, test, setting.recipe, Machine(torch.device("cpu"), "fp32", 1, "test"))
    for sweep in SWEEPS.values():
        rates, losses = sweep(job)
        assert rates[0] == sweep.low and rates[-1] <= sweep.high * (1 + 1e-9)
        assert len(rates) == len(losses) <= sweep.steps
        assert losses[0] == pytest.approx(math.log(10), rel=0.2)
