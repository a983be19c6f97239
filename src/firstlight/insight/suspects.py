"""Label errors, from the probabilities of networks that were not trained on the images they judge.

The question is that of confident learning (Northcutt et al. 2021, arXiv 1911.00068). The answer is a model
with K + 2 parameters, fitted to the labels by maximum likelihood. A temperature, and a bias for each class,
calibrate the probabilities (Alexandari et al. 2020, arXiv 1901.06852), so that neither an overconfident
network nor a class of low confidence looks like label errors. The last parameter is the share of labels that
were replaced by another class at random: it explains the labels that contradict the calibrated network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError

_FLOOR = torch.finfo(torch.float32).tiny
"""Smaller probabilities count as this one, so that a zero has a logarithm."""
_PRIOR_LOG_ODDS = -3.0
"""Log-odds, before the labels are seen, of a label being wrong: about 5 %."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Images ranked by how likely their label is an error.

    order: int64, N, all indices, the likeliest error first.
    scores: fp32, N, log-odds of the likeliest other class against the label; above 0 the other is likelier.
    suggested: int64, N, the likeliest class, whatever the label.
    count: the estimated number of label errors: labels that are likelier wrong than right. It is 0 for a
        network that has learned nothing, and too low where labels were confused with similar classes, which
        the network confuses too.
    """

    order: Tensor
    scores: Tensor
    suggested: Tensor
    count: int


def suspects(labels: Tensor, probabilities: Tensor) -> Suspects:
    """Rank images by how likely their label is an error.

    labels: int64, N. probabilities: N×K, rows sum to 1; OUT OF SAMPLE: each row from a network that was not
    trained on its image, since one that was has learned the wrong labels. Raises InputError where the two do
    not fit together.
    """
    labels = labels.detach().cpu()
    logits, share = _fitted(labels, _checked(labels, probabilities).clamp_min(_FLOOR).log())
    classes = logits.shape[1]
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    of_other = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    scores = (of_other - of_label + math.log(share / (1 - share) / (classes - 1))).float()
    suggested = logits.argmax(1)
    right, wrong = (1 - share) * of_label.exp(), share / (classes - 1) * -torch.expm1(of_label)
    count = int(((wrong > right) & (suggested != labels)).sum())
    return Suspects(scores.argsort(descending=True, stable=True), scores, suggested, count)


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


def _fitted(labels: Tensor, logits: Tensor) -> tuple[Tensor, float]:
    """Return calibrated log-probabilities, fp64, N×K, and the share of labels replaced at random.

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
        return calibrated(), float(torch.sigmoid(values[1]))
