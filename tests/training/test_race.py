"""A race finds the rate of a known optimum, says what it does not know, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
from tiny import CPU, TinyNet, digest, global_random_states, image_set
from torch import Tensor, nn

from firstlight.data.augment import FlipLR, normalise
from firstlight.data.batches import Batches
from firstlight.errors import InputError
from firstlight.training.constant import Constant
from firstlight.training.lr_finder import MIN_SHARE, LRFinding
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, AdamW, Muon, usual_lr
from firstlight.training.race import LEAST_LEARNT, VERDICTS, Calibration, Race, decide, race
from firstlight.training.schedule import OneCycle
from firstlight.training.trials import Trial, Trials

CHANCE = math.log(10)
PLAIN = Calibration(shift=0.3, shift_sd=0.0, fit_sd=0.5, usual_sd=1.0, curvature=1.0, worth=0.3)


def bowl(
    optimum: float, learnt: float = 0.5, *, least_steps: int = 1, edge: float = math.inf
) -> Callable[[float, int], Trial]:
    """Return trials whose score is a parabola about an optimum, and that diverge from `edge` on."""

    def run(rate: float, steps: int) -> Trial:
        octaves = math.log2(rate / optimum)
        progress = max(learnt - 0.02 * octaves**2, 0.0) if steps >= least_steps else 0.0
        score = math.inf if rate >= edge else CHANCE - progress
        return Trial(rate, steps, score, CHANCE)

    return run


@pytest.mark.parametrize("optimum", [0.004, 0.05, 0.35, 0.4, 1.3])
def test_it_walks_to_an_optimum_and_fits_it_exactly(optimum: float) -> None:
    trials, spent = race(bowl(optimum), 0.4, 16, 64, 1e9)
    rates = [trial.rate for trial in trials]
    assert rates == sorted(rates) and spent == 16 * len(trials)
    sure = dataclasses.replace(PLAIN, fit_sd=1e-3, worth=1e-6)
    answer = decide(trials, 0.4, 16 * 2, sure)
    # A run twice as long has its optimum `shift` octaves lower.
    assert answer.peak_lr == pytest.approx(optimum / 2**0.3, rel=0.01)
    assert answer.verdict == "found" and answer.regret == pytest.approx(0.0, abs=1e-6)


def test_the_answer_lies_between_the_race_and_the_usual_rate_by_their_precision() -> None:
    trials, _ = race(bowl(0.1), 0.4, 16, 64, 1e9)
    answer = decide(trials, 0.4, 16, PLAIN)
    # Weights of 4 and 1: two octaves below, a fifth of the way back.
    assert math.log2(answer.peak_lr / 0.1) == pytest.approx(0.4, abs=0.01)
    assert answer.interval is not None and answer.flat is not None
    assert answer.interval[0] < answer.peak_lr < answer.interval[1]
    sd = (4 + 1) ** -0.5
    assert math.log2(answer.interval[1] / answer.peak_lr) == pytest.approx(1.2816 * sd, rel=0.01)
    assert math.log2(answer.flat[1] / answer.peak_lr) == pytest.approx(0.3**0.5, rel=0.01)
    assert answer.regret == pytest.approx(0.01 * sd**2, rel=0.01)
    assert "would cost about 2.6 points" in answer.because


def test_the_usual_rate_is_the_answer_where_no_difference_matters() -> None:
    trials, _ = race(bowl(0.3), 0.4, 16, 64, 1e9)
    answer = decide(trials, 0.4, 16, PLAIN)
    assert (answer.peak_lr, answer.verdict) == (
        0.4,
        "usual",
    ) and "no better one" in answer.because


def test_trials_grow_until_they_learn_as_far_as_the_budget_goes() -> None:
    lengths: list[int] = []

    def run(rate: float, steps: int) -> Trial:
        lengths.append(steps)
        return bowl(0.4, least_steps=60)(rate, steps)

    trials, spent = race(run, 0.4, 16, 64, 1000)
    assert lengths[:9] == [16] * 4 + [32] * 4 + [64] and spent == sum(lengths)
    assert {trial.steps for trial in trials} == {64}
    trials, spent = race(bowl(0.4, least_steps=60), 0.4, 16, 64, 100)
    assert spent == 64 and decide(trials, 0.4, 500, PLAIN).verdict == "nothing learnt"


def test_where_the_usual_rate_diverges_it_looks_below_and_then_above() -> None:
    trials, _ = race(bowl(0.02, edge=0.1), 0.4, 16, 64, 1e9)
    answer = decide(trials, 0.4, 16, dataclasses.replace(PLAIN, usual_sd=100.0))
    assert answer.verdict == "found" and answer.peak_lr == pytest.approx(0.02, rel=0.05)
    trials, _ = race(bowl(3.0, 0.6), 0.4, 16, 64, 1e9)
    assert decide(trials, 0.4, 16, PLAIN).verdict == "found"


def test_every_trouble_has_its_own_verdict() -> None:
    nothing, _ = race(bowl(0.4, LEAST_LEARNT / 2), 0.4, 16, 64, 1e9)
    answer = decide(nothing, 0.4, 500, PLAIN)
    assert (answer.peak_lr, answer.verdict) == (0.4, "nothing learnt") and "too little" in answer.because
    far, _ = race(bowl(0.4 / 2**20, 50.0), 0.4, 16, 64, 1e9)
    answer = decide(far, 0.4, 16, PLAIN)
    assert answer.verdict == "edge" and answer.peak_lr == far[0].rate
    diverged, _ = race(bowl(0.4, edge=1e-9), 0.4, 16, 64, 1e9)
    with pytest.raises(InputError, match=r"diverges at every learning rate from 0\.025 to 1\.6") as caught:
        decide(diverged, 0.4, 500, PLAIN)
    assert "peak_lr" in caught.value.hint
    short = Race()(TinyNet(), batches(), SGD(), CPU, epochs=1)
    assert (short.verdict, short.peak_lr, short.rates) == ("too short", usual_at(1), ())
    assert {answer.verdict, short.verdict} <= set(VERDICTS)


def batches(count: int = 200) -> Batches:
    return Batches(image_set(count), 16, (FlipLR(),), seed=0, machine=CPU)


def usual_at(epochs: int, count: int = 200) -> float:
    return float(f"{usual_lr(SGD(), 16, epochs * (count // 16)):.2g}")


def test_too_few_images_to_hold_some_out() -> None:
    finding = Race()(TinyNet(), batches(70), SGD(), CPU, epochs=40)
    assert finding.verdict == "too short" and "too few images" in finding.peak_because


class Dropping(TinyNet):
    """A network that draws from torch's global stream."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.1, self.training))


def test_on_a_network_the_caller_is_left_alone_and_the_answer_is_the_same_again() -> None:
    model, before = Dropping(), global_random_states()
    model.eval()
    weights = digest(model.state_dict().values())
    lines: list[str] = []
    finder = Race(least_steps=8)
    first = finder(model, batches(), SGD(), CPU, schedule=OneCycle(peak_epoch=2), epochs=10, log=lines.append)
    assert digest(model.state_dict().values()) == weights
    assert not any(module.training for module in model.modules())
    assert global_random_states() == before
    assert first.method == "race" and len(lines) >= len(first.rates) >= 1
    assert first.min_lr == pytest.approx(MIN_SHARE * first.peak_lr, rel=0.05)
    assert first.cost is not None and 0 < first.cost < 1 and f"{first.cost:.0%}" in first.extent
    torch.rand(1)
    again = finder(model, batches(), SGD(), CPU, schedule=OneCycle(peak_epoch=2), epochs=10)
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(first, seconds=0.0)
    assert LRFinding.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False))) == first


def test_held_out_images_are_in_no_batch_and_not_augmented() -> None:
    whole = batches().images
    rest, held_out = batches().apart()
    assert isinstance(rest, Batches) and len(rest.images) == 136
    missing = [index for index, name in enumerate(whole.names) if name not in set(rest.images.names)]
    scored = whole.subset(torch.tensor(missing))
    plain = normalise(scored.images, whole.mean, whole.std)
    torch.testing.assert_close(torch.cat([images for images, _ in held_out]), plain)
    assert torch.equal(torch.cat([labels for _, labels in held_out]), scored.labels)


def test_a_trial_scores_with_calibrated_confidence_and_fresh_statistics() -> None:
    rest, held_out = batches().apart()
    trials = Trials(
        TinyNet(),
        rest,
        held_out,
        SGD(),
        CPU,
        objective=Objective(),
        schedule=OneCycle(2),
        epochs=8,
        min_share=0.02,
    )
    counts = torch.bincount(torch.cat([labels for _, labels in held_out])).double()
    shares = counts / counts.sum()
    assert trials.chance == pytest.approx(float(-(shares * shares.log()).sum()))
    # An untrained network, at the softest temperature, does about as well as chance, and no worse.
    assert trials(1e-9, 2).score == pytest.approx(trials.chance, abs=0.1)
    assert math.isinf(trials(1e12, 8).score)


def test_the_usual_rate_of_each_optimizer() -> None:
    for optimizer in (SGD(), AdamW(), Muon()):
        rates = [usual_lr(optimizer, batch, 1000) for batch in (32, 128, 512)]
        assert rates == sorted(rates)
    assert usual_lr(lambda parameters, lr, fused=False: None, 128, 1000) == 0.01  # type: ignore[arg-type, return-value]
    finding = Constant()(TinyNet(), batches(), SGD(), CPU, epochs=2)
    assert (finding.peak_lr, finding.rates, finding.cost) == (usual_at(2), (), 0.0)


def test_settings_that_make_no_sense_are_refused() -> None:
    for values in ({"share": 0.0}, {"share": 1.5}, {"least_steps": 1}, {"start": -1.0}, {"start": math.inf}):
        with pytest.raises(InputError):
            Race(**values)  # type: ignore[arg-type]


def test_the_answer_stays_below_a_rate_at_which_a_trial_fails() -> None:
    scores = {0.1: 1.9, 0.2: 1.8, 0.4: 1.7, 0.8: 2.25}
    trials = [Trial(rate, 64, score, CHANCE) for rate, score in scores.items()]
    sure = dataclasses.replace(PLAIN, shift=-2.0, fit_sd=1e-3)
    answer = decide(trials, 0.4, 128, sure)
    assert answer.peak_lr == 0.8 / 2 and "below 0.8, at which a trial failed" in answer.because
    assert decide(trials, 0.6, 128, dataclasses.replace(PLAIN, usual_sd=1e-3)).peak_lr == 0.8 / 2
