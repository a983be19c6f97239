"""Label errors, from the probabilities of networks that were not trained on the images they judge.

The question is that of confident learning (Northcutt et al. 2021, arXiv 1911.00068). First the probabilities
are calibrated by a model with K + 2 parameters, fitted to the labels by maximum likelihood: a temperature,
and a bias for each class (Alexandari et al. 2020, arXiv 1901.06852), so that neither an overconfident network
nor a class of low confidence looks like label errors; and the share of labels that were replaced at random,
which explains the labels that contradict the calibrated network. Then `error_count` estimates how many labels
are wrong, and of which kind they are; the kind chooses the ranking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.insight.error_count import error_count

_FLOOR = torch.finfo(torch.float32).tiny
"""Smaller probabilities count as this one, so that a zero has a logarithm."""
_PRIOR_LOG_ODDS = -3.0
"""Log-odds, before the labels are seen, of a label being wrong: about 5 %."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Images ranked by how likely their label is an error.

    order: int64, N, all indices, the likeliest error first.
    scores: fp32, N, log-odds of a label of its rank being wrong; above 0 it is likelier wrong than right.
    suggested: int64, N, the likeliest class, whatever the label.
    count: the estimated number of label errors. Those that contradict the network can be counted. Those that
        are the network's own confusions cannot: there the number rests on how many label errors published
        sets had, and `interval` is wide.
    interval: the 95 % interval of that number.
    """

    order: Tensor
    scores: Tensor
    suggested: Tensor
    count: int
    interval: tuple[int, int]


def suspects(labels: Tensor, probabilities: Tensor) -> Suspects:
    """Rank images by how likely their label is an error.

    labels: int64, N. probabilities: N×K, rows sum to 1; OUT OF SAMPLE: each row from a network that was not
    trained on its image, since one that was has learned the wrong labels. Raises InputError where the two do
    not fit together.
    """
    labels = labels.detach().cpu()
    logits = _fitted(labels, _checked(labels, probabilities).clamp_min(_FLOOR).log())
    errors = error_count(labels, logits)
    if errors.at_random > 0.5:
        doubts = _contradiction(labels, logits)
    else:
        doubts = _confusion(labels, logits, errors.flattening)
    order = doubts.argsort(descending=True, stable=True)
    scores = torch.empty(len(labels))
    scores[order] = errors.log_odds.sort(descending=True).values.float()
    interval = math.floor(errors.low), math.ceil(errors.high)
    return Suspects(order, scores, logits.argmax(1), round(errors.mean), interval)


def _contradiction(labels: Tensor, logits: Tensor) -> Tensor:
    """Return how far another class is ahead of the label, N, in log-probabilities.

    Each class is compared with its mean probability among images of that label: what a label is often
    confused with says less against it.
    """
    members = F.one_hot(labels, logits.shape[1]).double()
    probabilities = logits.exp()
    # One image more for each label, of mean probabilities, where a label has few or none.
    usual = (members.T @ probabilities + probabilities.mean(0)) / (members.sum(0) + 1)[:, None]
    return _ahead(labels, logits - usual[labels].log())


def _confusion(labels: Tensor, logits: Tensor, flattening: float) -> Tensor:
    """Return how far another class is ahead of the label, N, in probabilities.

    Each is compared with the mean of its own class, the threshold of confident learning. The less the errors
    look like confusions, the flatter the probabilities and the less the threshold counts: chosen on labels of
    a weaker network.
    """
    members = F.one_hot(labels, logits.shape[1]).double()
    probabilities = ((flattening + 0.25) * logits).softmax(1)
    usual = (members * probabilities).sum(0) / members.sum(0).clamp_min(1)
    return _ahead(labels, probabilities - min(2 * flattening, 1.0) * usual)


def _ahead(labels: Tensor, values: Tensor) -> Tensor:
    at = labels[:, None]
    return values.scatter(1, at, -math.inf).amax(1) - values.gather(1, at).squeeze(1)


def _checked(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Return the probabilities in fp64, on the CPU, with rows that sum to 1 exactly."""
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise InputError(
            f"probabilities must be N×K floating-point numbers, not {probabilities.dtype} of "
            f"{tuple(probabilities.shape)}"
        )
    count, classes = probabilities.shape
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(f"{count} rows of probabilities need int64 labels of shape ({count},)")
    if not count or classes < 2:
        raise InputError(f"{count} images of {classes} classes: there is no label to judge")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"a label lies outside 0…{classes - 1}, the {classes} columns of probabilities")
    rows = probabilities.detach().to("cpu", torch.float64)
    sums = rows.sum(1)
    if not bool((torch.isfinite(rows) & (rows >= 0)).all()) or float((sums - 1).abs().max()) > 0.02:
        raise InputError("a row of probabilities has a value outside 0…1, or does not sum to 1")
    return rows / sums[:, None]


def _fitted(labels: Tensor, logits: Tensor) -> Tensor:
    """Return calibrated log-probabilities, fp64, N×K.

    They are the most probable under a normal prior of deviation 1, which matters where the labels say little:
    for a few hundred images, or a network whose confidence never varies.
    """
    count, classes = logits.shape
    # The logarithm of the inverse temperature, the log-odds of the share, a bias for each class.
    prior = torch.tensor([0.0, _PRIOR_LOG_ODDS] + [0.0] * classes, dtype=torch.float64)
    values = prior.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=200, line_search_fn="strong_wolfe")

    def calibrated() -> Tensor:
        return F.log_softmax(values[0].exp() * logits + values[2:], dim=1)

    def loss() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            of_label = calibrated().gather(1, labels[:, None]).squeeze(1).exp()
            share = torch.sigmoid(values[1])
            likelihood = ((1 - share) * of_label + share / (classes - 1) * (1 - of_label)).log().sum()
            total = ((values - prior).square().sum() / 2 - likelihood) / count
            total.backward()
        return float(total.detach())

    optimizer.step(loss)
    with torch.no_grad():
        return calibrated()
