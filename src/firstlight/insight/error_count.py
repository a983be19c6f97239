"""The number of label errors, with its uncertainty, from calibrated out-of-sample probabilities.

A share of the labels was given by a weaker labeller: the calibrated network, flattened by a factor τ on its
log-probabilities. At τ = 0 it answers at random, and its errors contradict the network; near 1 it makes the
network's own confusions, and then the likelihood is the same for none and for many: no such count can come
from labels and probabilities alone. So the share of label errors has a prior, of what was found in ten
published benchmark sets (Northcutt et al. 2021, arXiv 2103.14749, table 1: 0.15 % to 10.1 %), and the number
is given as the mean of its posterior with an interval, which is wide where the labels cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_PRIOR_MEDIAN, _PRIOR_DEVIATION = 0.0193, 1.27
"""Of the ten shares: the geometric mean, and the standard deviation of their logarithms."""
_FLATTENINGS = (0.0, 0.25, 0.5, 0.7, 0.85)
_KINDS = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64).log()
"""Before the labels are seen, errors at random are as likely as confusions of all four degrees together."""
_SHARES = torch.logspace(math.log10(3e-4), math.log10(0.4), 23, dtype=torch.float64)
_SHARPENINGS = torch.linspace(-0.15, 1.2, 19, dtype=torch.float64)
"""Logarithms of the factors on the log-probabilities: without errors a network would be surer."""
_FINE = 12
"""Shares between two of the grid."""
_MOST_GIVEN = 0.95
"""The share of labels, at most, that the weaker labeller has given."""

Cell = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ErrorCount:
    """How many labels are wrong.

    mean: of the posterior. low, high: its 95 % interval. at_random: probability that labels were replaced at
    random. flattening: τ, the mean of its posterior. log_odds: fp64, N, of each label being wrong.
    """

    mean: float
    low: float
    high: float
    at_random: float
    flattening: float
    log_odds: Tensor


def error_count(labels: Tensor, logits: Tensor) -> ErrorCount:
    """Estimate the label errors. labels: int64, N; logits: fp64, N×K, calibrated log-probabilities."""
    grid = [[_of_labels(labels, logits, sharp, flat) for sharp in _SHARPENINGS] for flat in _FLATTENINGS]
    # τ × share: at the sharpening that explains the labels best.
    likelihood, sharpest = _profile(
        torch.stack([torch.stack([_likelihood(*x) for x in row]) for row in grid])
    )
    wrong, variance = _expected(grid, sharpest)
    steps = (len(_SHARES) - 1) * _FINE + 1
    first, last = _SHARES.log10()[[0, -1]].tolist()
    shares = torch.logspace(first, last, steps, dtype=torch.float64)
    prior = -((shares / _PRIOR_MEDIAN).log() / _PRIOR_DEVIATION).square() / 2
    fine = [_between(part) for part in (likelihood, wrong, variance)]
    posterior = (fine[0] + prior + _KINDS[:, None]).flatten().softmax(0).view(len(_FLATTENINGS), steps)
    means, deviations = fine[1].clamp_min(0), fine[2].clamp_min(1e-4).sqrt()
    low, high = (_quantile(posterior, means, deviations, level, len(labels)) for level in (0.025, 0.975))
    kinds = posterior.sum(1)
    return ErrorCount(
        float((posterior * means).sum()),
        low,
        high,
        float(kinds[0]),
        float((kinds * torch.tensor(_FLATTENINGS)).sum()),
        _log_odds(grid, posterior, sharpest),
    )


def _of_labels(labels: Tensor, logits: Tensor, sharp: Tensor, flat: float) -> Cell:
    """Return the probability of each label as the truth and as the weaker labeller's answer, both fp64, N.

    And the weaker labeller's share of wrong answers.
    """
    truth = F.softmax(sharp.exp() * logits, 1)
    weaker = F.softmax(flat * sharp.exp() * logits, 1)
    at = labels[:, None]
    errors = (1 - (truth * weaker).sum(1)).mean().clamp_min(1e-9)
    return truth.gather(1, at).squeeze(1), weaker.gather(1, at).squeeze(1), errors


def _given(errors: Tensor) -> Tensor:
    """Return the share of labels that the weaker labeller gave, for each share of label errors."""
    return (_SHARES / errors).clamp(max=_MOST_GIVEN)


def _likelihood(truth: Tensor, weaker: Tensor, errors: Tensor) -> Tensor:
    """Return the log-likelihood of the labels for each share of label errors."""
    given = _given(errors)[:, None]
    return ((1 - given) * truth + given * weaker).clamp_min(1e-300).log().sum(1)


def _wrong(cell: Cell, share: int) -> Tensor:
    """Return the probability of each label being wrong, fp64, N."""
    truth, weaker, errors = cell
    given = _given(errors)[share]
    # Of the answers of the weaker labeller, some are right.
    wrong = (given * weaker * (1 - truth)).clamp_min(1e-300)
    return wrong / (wrong + truth * (1 - given + given * weaker))


def _profile(likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest likelihood of a τ × sharpening × share grid, τ × share, and the sharpening there.

    Between the points of the grid it is a parabola through the largest and its two neighbours; the sharpening
    is a number of steps of the grid.
    """
    best = likelihood.argmax(1, keepdim=True).clamp(1, likelihood.shape[1] - 2)
    before, at, after = (likelihood.gather(1, best + step) for step in (-1, 0, 1))
    slope, bend = (after - before) / 2, ((before - 2 * at + after) / 2).clamp_max(-1e-9)
    offset = (-slope / (2 * bend)).clamp(-1, 1)
    return (at + offset * (slope + offset * bend)).squeeze(1), (best + offset).squeeze(1)


def _expected(grid: Sequence[Sequence[Cell]], sharpest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected number of errors, τ × share, and its variance."""
    means, variances = torch.empty_like(sharpest), torch.empty_like(sharpest)
    for flat, row in enumerate(grid):
        for share, place in enumerate(sharpest[flat].tolist()):
            first = min(int(place), len(row) - 2)
            chances = [_wrong(cell, share) for cell in row[first : first + 2]]
            weight = place - first
            chance = (1 - weight) * chances[0] + weight * chances[1]
            means[flat, share], variances[flat, share] = chance.sum(), (chance * (1 - chance)).sum()
    return means, variances


def _between(values: Tensor) -> Tensor:
    """Return τ × fine shares: cubics through four neighbours of the grid of shares."""
    count = values.shape[1]
    places = torch.arange((count - 1) * _FINE + 1, dtype=torch.float64) / _FINE
    first = (places.floor().long() - 1).clamp(0, count - 4)
    x = places - first
    weights = [
        -(x - 1) * (x - 2) * (x - 3) / 6,
        x * (x - 2) * (x - 3) / 2,
        -x * (x - 1) * (x - 3) / 2,
        x * (x - 1) * (x - 2) / 6,
    ]
    return torch.stack([weight * values[:, first + step] for step, weight in enumerate(weights)]).sum(0)


def _quantile(posterior: Tensor, means: Tensor, deviations: Tensor, level: float, most: int) -> float:
    """Return a quantile, in 0…most, of a mixture of normal distributions, by bisection."""
    low, high = 0.0, float(most)
    for _ in range(50):
        middle = (low + high) / 2
        below = float((posterior * torch.special.ndtr((middle - means) / deviations)).sum())
        low, high = (middle, high) if below < level else (low, middle)
    return (low + high) / 2


def _log_odds(grid: Sequence[Sequence[Cell]], posterior: Tensor, sharpest: Tensor) -> Tensor:
    """Return the log-odds of each label being wrong, fp64, N: averaged over what is left uncertain."""
    nearest = ((torch.arange(posterior.shape[1]) + _FINE // 2) // _FINE).expand_as(posterior)
    mass = torch.zeros(sharpest.shape, dtype=torch.float64).scatter_add_(1, nearest, posterior)
    wrong = torch.zeros_like(grid[0][0][0])
    for flat, share in torch.nonzero(mass > 1e-4).tolist():
        cell = grid[flat][round(float(sharpest[flat, share]))]
        wrong += mass[flat, share] * _wrong(cell, share)
    return wrong.clamp_min(1e-300).log() - torch.log1p(-wrong.clamp_max(1 - 1e-12))
