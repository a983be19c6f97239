"""Tunes the last blocks of a network that knows other images, from a linear layer already fitted to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from tqdm import tqdm

from firstlight.machine.streams import stream
from firstlight.training.head import (
    MIRRORED,
    HeadFit,
    LogisticHead,
    fit_logistic,
    inverse_temperature,
    judged_view,
    stratified,
)
from firstlight.training.schedule import OneCycle

_COUNTS = range(60, 5001)
"""Training images for which `tune=auto` tunes: fewer judge nothing, and more take minutes."""
_EPOCHS = range(2, 9)
_REHEARSED = 0.5
"""Share of the epochs in which the rehearsal must have become better."""
_SHOWN = 20_000
"""Images shown at most, repeated ones counted, where two epochs are fewer."""
_BATCH, _SMOOTHING = 50, 0.1
_AT_ONCE = 64
"""Images in a forward pass without a gradient."""


@dataclass(frozen=True)
class Rehearsal:
    """What images say of tuning that were held out from it.

    before, after: accuracy, as fractions. better: whether their calibrated cross-entropy fell; tuning is kept
    only then.
    """

    before: float
    after: float
    better: bool

    @property
    def words(self) -> str:
        change = f"from {self.before:.1%} to {self.after:.1%} of held-out training images right"
        verdict = "kept" if self.better else "their loss did not fall, so the network stays as published"
        return f"last blocks tuned: {change}; {verdict}"


@dataclass(frozen=True, eq=False)
class Tuned:
    """Last blocks and linear layer after tuning; those of before where the rehearsal was no better.

    weight: fp32, K×D, and bias: fp32, K.
    """

    blocks: nn.Module
    weight: Tensor
    bias: Tensor
    rehearsal: Rehearsal


def applies(head: LogisticHead, count: int) -> bool:
    """Whether the last blocks are tuned on `count` training images."""
    return head.tune == "on" or (head.tune == "auto" and count in _COUNTS)


def shown(count: int) -> int:
    """Return how many images tuning shows, repeated ones and those of the rehearsal counted."""
    epochs = _epochs(count)
    return round((epochs + 0.8 * _rehearsed(epochs)) * count)


def tune(
    head: LogisticHead,
    blocks: Callable[[], nn.Module],
    grids: Tensor,
    features: Tensor,
    labels: Tensor,
    classes: int,
    fit: HeadFit,
    seed: int = 0,
    *,
    quiet: bool = False,
) -> Tuned:
    """Train `blocks()`, a fresh copy of a frozen network's last blocks, and the linear layer behind them.

    blocks: maps N×C×H×W grids to N×D features, with gradients. grids: fp16, V×N×C×H×W, what they read, of the
    views of `head.views`. features: fp32, V×N×D, of the same. labels: int64, N. fit: of the linear layer.

    SGD with Nesterov's momentum of 0.9 goes along one cycle, at a hundredth of the usual rate, as fastai does
    after the last layer alone was trained (Howard & Ruder 2018, arXiv 1801.06146, section 3). Below these
    blocks nothing moves, so what they read is computed once. A fifth of the images is held out from a
    rehearsal, which says whether it is worth it, and calibrates the confidence; then all images are learned
    from. The tuned network is to look at each image once, while the linear layer alone is judged with the
    mirror image: tuning gains more than that, at half the time. Deterministic for a seed.
    """
    used = [view for view in range(len(grids)) if fit.mirror or not MIRRORED[view]]
    count, device = len(labels), labels.device
    inside = stratified(labels, min(head.folds, count), seed).to(device) == 0
    rest, truth = torch.nonzero(~inside).flatten(), labels[inside].cpu()
    epochs, batch = _epochs(count), max(min(_BATCH, count // 4), 1)
    rehearsed = _rehearsed(epochs)
    bar = tqdm(
        total=rehearsed * (len(rest) // batch) + epochs * (count // batch),
        desc="tuning",
        unit=" steps",
        delay=1,
        leave=False,
        disable=True if quiet else None,
    )

    def tuned(rows: Tensor, weight: Tensor, bias: Tensor, epochs: int) -> tuple[nn.Module, nn.Linear]:
        network, linear = blocks().to(device), skip_init(nn.Linear, weight.shape[1], classes, device=device)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        optimizer = torch.optim.SGD(
            [*network.parameters(), *linear.parameters()], head.tune_rate, momentum=0.9, nesterov=True
        )
        steps = len(rows) // batch
        schedule = OneCycle(peak_epoch=epochs / 20, peak_lr=head.tune_rate, min_lr=head.tune_rate / 50)
        rate, draws = schedule.steps(epochs, steps), stream(seed, "tuning")
        for step in range(epochs * steps):
            if step % steps == 0:
                order = rows.cpu()[torch.randperm(len(rows), generator=draws)]
            taken = order[step % steps * batch :][:batch]
            view = torch.tensor(used)[torch.randint(len(used), (batch,), generator=draws)]
            logits = linear(network(_placed(grids[view, taken], device)))
            loss = F.cross_entropy(logits, labels[taken.to(device)], label_smoothing=_SMOOTHING)
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(1)
        return network, linear

    with bar:
        rows = features[used][:, rest].flatten(0, 1)
        weight, bias = fit_logistic(rows, labels[rest].repeat(len(used)), classes, fit.strength)
        untuned = F.linear(judged_view(features[:, inside], fit.mirror), weight, bias).cpu()
        network, linear = tuned(rest, weight, bias, rehearsed)
        with torch.no_grad():
            logits = linear(_features(network, grids[0][inside.cpu()], device)).cpu()
        before, after = (float((each.argmax(1) == truth).double().mean()) for each in (untuned, logits))
        better = _calibrated_loss(logits, truth) < _calibrated_loss(untuned, truth)
        rehearsal = Rehearsal(before, after, better)
        if not better:
            return Tuned(blocks(), fit.weight, fit.bias, rehearsal)
        network, linear = tuned(torch.arange(count), fit.weight, fit.bias, epochs)
    scale = inverse_temperature(logits, truth)
    return Tuned(network, scale * linear.weight.detach(), scale * linear.bias.detach(), rehearsal)


def _epochs(count: int) -> int:
    return min(max(_SHOWN // max(count, 1), _EPOCHS[0]), _EPOCHS[-1])


def _rehearsed(epochs: int) -> int:
    return max(round(_REHEARSED * epochs), 1)


def _placed(grids: Tensor, device: torch.device) -> Tensor:
    return grids.to(device).float().contiguous(memory_format=torch.channels_last)


def _features(network: nn.Module, grids: Tensor, device: torch.device) -> Tensor:
    return torch.cat([network(_placed(part, device)) for part in grids.split(_AT_ONCE)])


def _calibrated_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy of logits scaled by what calibrates them."""
    return float(F.cross_entropy(inverse_temperature(logits, labels) * logits.double(), labels))
