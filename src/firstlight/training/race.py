"""The race: a finder that trains copies of the network at a few rates, briefly but completely."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.training.loop import BatchSource
from firstlight.training.lr_finder import MIN_BECAUSE, MIN_SHARE, LRFinding, rounded
from firstlight.training.objective import Objective
from firstlight.training.optimizers import OptimizerSpec, usual_lr
from firstlight.training.schedule import OneCycle, Schedule
from firstlight.training.trials import Trial, Trials

TRIALS = 5.5
"""Trials of equal length over which the budget is spread; a race rarely needs more."""
MOST_TRIALS = 9
LEAST_STEPS = 8
"""A trial of fewer steps says nothing."""
LEAST_LEARNT = 0.05
"""A trial whose score is less than this far below chance, in nats, has learnt nothing that ranks rates."""
FAILS, MARGIN = 0.5, 2.0
"""A trial fails that has learnt less than the first number times what the best has. The answer is at most the
rate of the first one that fails, divided by the second number."""
EIGHTY = 1.2816
"""Standard deviations to each side of a mean between which 80 % of a normal distribution lie."""


@dataclass(frozen=True)
class Calibration:
    """What short trials say about whole runs, measured by benchmarks/lr_regret.py; see docs/finder.md.

    shift, shift_sd: octaves by which the best rate falls with each doubling of the steps, from a trial to the
        run (negative where it rises), and how much that differs between networks and images.
    fit_sd: octaves by which the best rate of trials scatters where seeds alone differ.
    usual_sd: octaves by which the best rate of a run scatters about the usual one.
    curvature: accuracy that a run loses, in points, one octave from its best rate.
    worth: points of accuracy; a smaller difference does not count.
    """

    shift: float = -0.14
    shift_sd: float = 0.35
    fit_sd: float = 0.43
    usual_sd: float = 1.15
    curvature: float = 1.0
    worth: float = 0.1


VERDICTS = {
    "usual": "the usual rate lies in the flat region",
    "found": "another rate is better",
    "too short": "the run has too few steps or images for a race",
    "nothing learnt": "trials this short learn nothing",
    "edge": "the best rate lies beyond what was tried",
}


@dataclass(frozen=True)
class Race:
    """A few rates, each over the whole schedule compressed to a few steps, on the same images and draws.

    Trials start at the usual rate for this optimizer, batch and length, and walk by factors of 2 towards the
    better side until the best rate has a worse one on both sides. A trial is scored by the calibrated
    cross-entropy on training images that none of them trains on. A parabola through the best rate and its
    neighbours, over the rate's logarithm, has its lowest point at the best rate of such a short run. That of
    a long run differs (arXiv 2409.19913): the answer is shifted by what was measured, and averaged with the
    usual rate, each weighted by its precision. It stays below a rate at which a trial failed. Where the usual
    rate would cost less than a difference that matters, it is the answer.

    Raises InputError where the loss is not finite at any rate.

    share: of the run's steps that all trials together may take, about.
    least_steps: of a trial, whatever the share says, but no more than a third of the run; shorter ones do not
        rank rates, so a race for a short run takes a larger share of it.
    start: the rate of the first trial, and the answer where the race finds none; the usual one by default.
    """

    share: float = 0.2
    least_steps: int = 64
    start: float | None = None
    calibration: Calibration = field(default=Calibration(), repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share must be above 0 and at most 1, not {self.share:g}")
        if self.least_steps < 2:
            raise InputError(f"least_steps must be at least 2, not {self.least_steps}")
        if self.start is not None and not 0 < self.start < math.inf:
            raise InputError(f"start must be a positive rate, not {self.start:g}")

    def steps(self, total: int) -> int:
        """Return the steps of a trial for a run of `total` steps."""
        return max(round(self.share * total / TRIALS), min(self.least_steps, total // 3))

    def budget(self, total: int) -> float:
        """Return the steps up to which trials are made longer where they learn nothing."""
        return max(self.share * total, 6 * self.steps(total))

    def expected_steps(self, total: int) -> int:
        return 4 * self.steps(total)

    def __call__(
        self,
        model: nn.Module,
        batches: BatchSource,
        optimizer: OptimizerSpec,
        machine: Machine,
        *,
        objective: Objective = Objective(),
        schedule: Schedule = OneCycle(),
        epochs: int = 24,
        log: Callable[[str], None] = lambda line: None,
    ) -> LRFinding:
        begun, total = time.perf_counter(), epochs * len(batches)
        usual = self.start or usual_lr(optimizer, batches.batch_size, total)
        steps = self.steps(total)
        apart = getattr(batches, "apart", None)
        if apart is None:
            return _usual("too short", usual, "these batches cannot hold images out (`apart`)", begun)
        if steps < LEAST_STEPS:
            return _usual("too short", usual, f"{total} steps are too few for a race", begun)
        try:
            rest, held_out = apart()
        except InputError:
            return _usual("too short", usual, "there are too few images to hold some out", begun)
        trials = Trials(model, rest, held_out, optimizer, machine, objective, schedule, epochs, MIN_SHARE)

        def run(rate: float, steps: int) -> Trial:
            trial = trials(rate, steps)
            log(f"learning rate {rate:.2g}, {steps} steps: {_score_words(trial)}")
            return trial

        raced, spent = race(run, usual, steps, total // 3, self.budget(total))
        answer = decide(raced, usual, total, self.calibration)
        return answer.finding(raced, time.perf_counter() - begun, spent / total)


def race(
    run: Callable[[float, int], Trial], usual: float, steps: int, most_steps: int, budget: float
) -> tuple[list[Trial], int]:
    """Run trials from the usual rate on; return those of the last length by rate, and the steps of all.

    First a rate and a length at which something is learnt: the usual rate, then those 4 times lower and
    higher, then the same with twice the steps, up to `most_steps` and as far as three trials stay within the
    budget (in steps). From there the race walks by factors of 2 until the best rate lies between two worse.
    """
    spent = 0

    def trial(octaves: float) -> Trial:
        nonlocal spent
        spent += steps
        return run(usual * 2**octaves, steps)

    trials: dict[float, Trial] = {}  # by octaves from the usual rate
    while True:
        for octaves in (0.0, -2.0, 2.0, -4.0):
            trials[octaves] = trial(octaves)
            if _learnt(trials[octaves]) >= LEAST_LEARNT:
                break
        best = max(trials, key=lambda octaves: _learnt(trials[octaves]))
        if _learnt(trials[best]) >= LEAST_LEARNT:
            break
        if 2 * steps > most_steps or spent + 6 * steps > budget:
            return [trials[octaves] for octaves in sorted(trials)], spent
        steps, trials = 2 * steps, {}
    while len(trials) < MOST_TRIALS:
        missing = [best + side for side in (-1, 1) if best + side not in trials]
        if not missing:
            break
        trials[missing[0]] = trial(missing[0])
        best = max(trials, key=lambda octaves: _learnt(trials[octaves]))
    return [trials[octaves] for octaves in sorted(trials)], spent


def _learnt(trial: Trial) -> float:
    """Return by how much a trial's score is below that of a network that has learnt nothing; at least 0."""
    return max(trial.chance - trial.score, 0.0)


@dataclass(frozen=True)
class Answer:
    """What a race says of a run. fitted: the parabola at the rates of the trials; else as in `LRFinding`."""

    peak_lr: float
    verdict: str
    because: str
    fitted: tuple[float, ...]
    interval: tuple[float, float] | None = None
    flat: tuple[float, float] | None = None
    regret: float | None = None

    def finding(self, trials: Sequence[Trial], seconds: float, cost: float) -> LRFinding:
        peak = rounded(self.peak_lr)
        return LRFinding(
            rates=tuple(trial.rate for trial in trials),
            losses=tuple(min(trial.score, trial.chance) for trial in trials),
            smoothed=self.fitted,
            peak_lr=peak,
            min_lr=rounded(peak * MIN_SHARE),
            peak_because=self.because,
            min_because=MIN_BECAUSE,
            seconds=seconds,
            method="race",
            verdict=self.verdict,
            cost=cost,
            interval=self.interval,
            flat=self.flat,
            regret=self.regret,
        )


def decide(trials: Sequence[Trial], usual: float, total: int, calibration: Calibration) -> Answer:
    """Answer from trials of one length, the lowest rate first, for a run of `total` steps.

    Raises InputError where no trial's loss stayed finite.
    """
    c, scores = calibration, tuple(min(trial.score, trial.chance) for trial in trials)
    tried = f"{trials[0].rate:.2g} to {trials[-1].rate:.2g}"
    if not any(math.isfinite(trial.score) for trial in trials):
        raise InputError(
            f"training diverges at every learning rate from {tried}",
            "Look at the data and the network, or give lower rates: --set peak_lr=… --set min_lr=…",
        )
    best = max(range(len(trials)), key=lambda index: _learnt(trials[index]))
    steps = trials[best].steps
    if _learnt(trials[best]) < LEAST_LEARNT:
        words = f"the usual rate: trials of {steps} steps learnt too little at {tried} to tell rates apart"
        return Answer(usual, "nothing learnt", words, scores)
    if best in (0, len(trials) - 1):
        peak = trials[best].rate / 2 ** (c.shift * math.log2(total / steps))
        words = f"the best of {tried} lies at the edge, and a race goes no further"
        return Answer(peak, "edge", words, scores)
    here = math.log2(trials[best].rate)
    left, middle, right = scores[best - 1 : best + 2]
    bend = max(left + right - 2 * middle, 1e-9)
    of_trials = here + (left - right) / (2 * bend)
    doublings = math.log2(total / steps)
    of_run, of_run_sd = of_trials - c.shift * doublings, math.hypot(c.fit_sd, c.shift_sd * doublings)
    # Two measurements of one rate, each weighted by its precision.
    weights = of_run_sd**-2, c.usual_sd**-2
    mean = (weights[0] * of_run + weights[1] * math.log2(usual)) / sum(weights)
    sd = sum(weights) ** -0.5
    reach = (c.worth / c.curvature) ** 0.5
    interval = 2 ** (mean - EIGHTY * sd), 2 ** (mean + EIGHTY * sd)
    flat = 2 ** (mean - reach), 2 ** (mean + reach)
    # A rate that fails in a short trial leaves no room for the longer run, in which sharpness grows.
    fails = [t.rate for t in trials[best + 1 :] if _learnt(t) < FAILS * _learnt(trials[best])]
    ceiling = fails[0] / MARGIN if fails else math.inf
    keeps = abs(mean - math.log2(usual)) <= reach and usual <= ceiling
    peak = usual if keeps else min(2**mean, ceiling)
    regret = c.curvature / 100 * (sd**2 + (math.log2(peak) - mean) ** 2)
    between = f"80 %: {interval[0]:.2g} to {interval[1]:.2g}"
    lost = c.curvature * (mean - math.log2(usual)) ** 2
    longer = f"trials were best at {2**of_trials:.2g}, and the run is {total / steps:.0f} times as long"
    words = (
        f"the usual rate: no better one by {c.worth:g} points ({longer}; {between})"
        if keeps
        else f"{longer} ({between}); the usual rate, {usual:.2g}, would cost about {lost:.1f} points"
    )
    if peak == ceiling:
        words += f"; kept a factor of {MARGIN:g} below {fails[0]:.2g}, at which a trial failed"
    fitted = tuple(
        middle + bend / 2 * ((math.log2(trial.rate) - of_trials) ** 2 - (here - of_trials) ** 2)
        for trial in trials
    )
    verdict = "usual" if keeps else "found"
    return Answer(peak, verdict, words, fitted, interval, flat, regret)


def _usual(verdict: str, rate: float, why: str, begun: float) -> LRFinding:
    answer = Answer(rate, verdict, f"the usual rate: {why}", ())
    return answer.finding((), time.perf_counter() - begun, 0.0)


def _score_words(trial: Trial) -> str:
    return "diverged" if math.isinf(trial.score) else f"held-out loss {trial.score:.3f}"
