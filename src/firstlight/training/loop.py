"""The training loop: a generator that takes one step after another and yields as it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from firstlight.errors import Diverged, InputError
from firstlight.machine.clock import Stopwatch
from firstlight.machine.machine import Machine
from firstlight.models.synchronised_norm import SynchronisedBatchNorm2d, synchronised
from firstlight.training.history import Epoch
from firstlight.training.objective import Objective, uphill
from firstlight.training.state import TrainState, weights_digest


class BatchSource(Protocol):
    """Where batches come from: `epoch(e, first)` yields (images, labels) from batch `first` of epoch e on."""

    batch_size: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


def endless(batches: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch after another."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


class Step(Protocol):
    """How `fit` takes a step: `train_step`, or the same step in a CUDA graph (`training.graph`)."""

    def __call__(
        self,
        state: TrainState,
        images: Tensor,
        labels: Tensor,
        lr: float,
        objective: Objective,
        machine: Machine,
    ) -> Tensor: ...


FAR_ABOVE = 10.0
"""A loss so many times that of the first step, or 1 where that is less, counts as divergence."""


@dataclass(frozen=True)
class Tick:
    """A moment in training, after `step` of `steps` steps; `epoch` is set where an epoch ends."""

    step: int
    steps: int
    lr: float
    images_per_second: float
    epoch: Epoch | None = None


def train_step(
    state: TrainState, images: Tensor, labels: Tensor, lr: float, objective: Objective, machine: Machine
) -> Tensor:
    """Take one optimizer step at learning rate `lr`; return the batch's mean loss, still on the device."""
    loss = update_weights(state, images, labels, lr, state.step, objective, machine)
    finish_step(state)
    return loss


def update_weights(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    lr: float | Tensor,
    step: int | Tensor,
    objective: Objective,
    machine: Machine,
) -> Tensor:
    """Compute the gradient, update the weights, and count; return the batch's mean loss.

    The host waits for nothing, so that a CUDA graph can hold all of it; there `lr` and `step` are tensors on
    the device.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)

    ranks = machine.ranks
    size = len(images) if ranks.alone else state.batch_size

    def forward(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, mean loss, and what is minimised, with loss scaling where the precision needs it.

        size: images over all ranks; this rank's share of them is its share of the gradient.
        """
        with machine.autocast():
            logits = model(images)
        loss = total = objective(logits, labels)
        if objective.l1:
            total = total + objective.l1 * sum(weight.abs().sum() for weight in model.parameters())
        if not ranks.alone:
            total = total * (len(labels) / size)
        return logits, loss, total if scaler is None else scaler.scale(total)

    optimizer.zero_grad(set_to_none=True)
    quarter = -(-size // 4)
    mine = ranks.rows(quarter)
    with (
        uphill(
            model, lambda: forward(images[:mine], labels[:mine], quarter)[2], objective.sharpness, ranks.add
        )
        if objective.sharpness
        else contextlib.nullcontext()
    ):
        logits, loss, total = forward(images, labels, size)
        total.backward()
    loss = loss.detach()
    correct = (logits.detach().argmax(1) == labels).sum()
    counts = torch.stack([loss * len(labels), correct, torch.full_like(loss, len(labels))])
    if not ranks.alone:
        statistics = _own_statistics(model, len(labels) / size)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        ranks.add([*gradients, *statistics, counts])
        loss = counts[0] / counts[2]
    if objective.clip_norm:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), objective.clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        state.sums += counts
        state.first_loss.copy_(torch.where(torch.isinf(state.first_loss), loss, state.first_loss))
        is_bad = ~torch.isfinite(loss) | (loss > FAR_ABOVE * state.first_loss.clamp_min(1.0))
        is_first = is_bad & (state.first_bad_step < 0)
        state.first_bad_step.copy_(torch.where(is_first, step, state.first_bad_step))
    return loss


def _own_statistics(model: nn.Module, share: float) -> list[Tensor]:
    """Return the running statistics of batch norm that each rank has its own of, times its share.

    Their sum over the ranks is the mean, so that all ranks, and a checkpoint of one, hold the same network.
    """
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SynchronisedBatchNorm2d)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    for buffer in statistics:
        buffer.mul_(share)
    return statistics


def finish_step(state: TrainState) -> None:
    """Update the average of the weights, and count the step."""
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1


def fit(
    state: TrainState,
    batches: BatchSource,
    schedule: Callable[[int], float],
    *,
    epochs: int,
    machine: Machine,
    objective: Objective = Objective(),
    step: Step = train_step,
    tick_seconds: float = 1.0,
    batch_norm: str = "synchronised",
) -> Iterator[Tick]:
    """Train from where `state` is to the end of `epochs`, and yield a `Tick` about every `tick_seconds`.

    schedule: from the step, counted from 0, to the learning rate. The clock stands still while the
    caller has a tick, so evaluation and drawing do not count. Raises Diverged with the step and the
    learning rate at which the loss was not finite, or `FAR_ABOVE` the first.

    batch_norm: over several ranks "synchronised", or "ghost": each rank's own. The ranks tick at the same
    steps, and compare their weights at the end of each epoch; raises RunFailed where they differ.
    """
    if not machine.ranks.alone and batch_norm == "synchronised":
        with synchronised(state.model):
            yield from _fit(state, batches, schedule, epochs, machine, objective, step, tick_seconds)
    else:
        yield from _fit(state, batches, schedule, epochs, machine, objective, step, tick_seconds)


def _fit(
    state: TrainState,
    batches: BatchSource,
    schedule: Callable[[int], float],
    epochs: int,
    machine: Machine,
    objective: Objective,
    step: Step,
    tick_seconds: float,
) -> Iterator[Tick]:
    steps, state.batch_size, ranks = epochs * len(batches), batches.batch_size, machine.ranks
    watch = Stopwatch(machine)
    seconds_before = state.seconds
    epoch_seconds, epoch_first = state.seconds, state.step
    while state.step < steps:
        epoch, first = divmod(state.step, len(batches))
        if first == 0:
            state.sums.zero_()
            epoch_seconds, epoch_first = state.seconds, state.step
        state.model.train()
        last_tick, ticked, next_tick = time.perf_counter(), state.step, state.step + 1
        watch.start()
        for images, labels in batches.epoch(epoch, first):
            lr = schedule(state.step)
            step(state, images, labels, lr, objective, machine)
            ended = state.step % len(batches) == 0
            elapsed = time.perf_counter() - last_tick
            if not ended and (elapsed < tick_seconds if ranks.alone else state.step < next_tick):
                continue
            if not ranks.alone:  # a clock of its own would part the ranks
                pace = elapsed / (state.step - ticked)
                next_tick = state.step + ranks.broadcast(max(1, round(tick_seconds / max(pace, 1e-6))))
                ticked = state.step
            watch.pause()
            state.seconds = seconds_before + watch.seconds
            _raise_if_diverged(state, schedule)
            images_trained = (state.step - epoch_first) * batches.batch_size
            speed = images_trained / max(state.seconds - epoch_seconds, 1e-9)
            summary = None
            if ended:
                loss, correct, count = state.sums.tolist()
                if not ranks.alone:
                    ranks.require_equal(weights_digest(state.model), f"after epoch {epoch + 1}")
                summary = Epoch(
                    epoch + 1, state.step, lr, loss / count, correct / count, speed, state.seconds
                )
            yield Tick(state.step, steps, lr, speed, summary)
            state.model.train()
            last_tick = time.perf_counter()
            watch.start()
        if state.step < (epoch + 1) * len(batches):
            given = state.step - epoch * len(batches)
            raise InputError(f"epoch {epoch + 1} gave {given} batches where {len(batches)} were promised")


def _raise_if_diverged(state: TrainState, schedule: Callable[[int], float]) -> None:
    step = int(state.first_bad_step)
    if step >= 0:
        raise Diverged(step, schedule(step))
