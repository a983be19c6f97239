"""The training loop: an explicit state, and a generator that yields as it goes."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from firstlight.errors import Diverged, InputError
from firstlight.machine.clock import Stopwatch
from firstlight.machine.machine import Machine
from firstlight.training.history import Epoch
from firstlight.training.objective import Objective, uphill
from firstlight.training.optimizers import OptimizerSpec


class BatchSource(Protocol):
    """Where batches come from: `epoch(e, first)` yields (images, labels) from batch `first` of epoch e on."""

    batch_size: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class Best:
    """The weights of the best epoch so far on validation images; the earlier one wins a tie."""

    accuracy: float = -math.inf
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, model: nn.Module, epoch: int, accuracy: float) -> None:
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.weights = copy.deepcopy(model.state_dict())


@dataclass
class TrainState:
    """Everything that a training step changes.

    sums: on the device, of the current epoch: loss × images, right answers, images.
    first_bad_step: on the device; the first step whose loss was not finite, -1 while there is none.
    seconds: of training so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler | None
    sums: Tensor
    first_bad_step: Tensor
    step: int = 0
    seconds: float = 0.0
    best: Best | None = None

    @classmethod
    def create(
        cls, model: nn.Module, optimizer: OptimizerSpec, machine: Machine, *, average_decay: float = 0.0
    ) -> TrainState:
        """Place a model on the machine and start at step 0.

        average_decay: of the exponential moving average of the weights, per step; 0 keeps none.
        """
        device = machine.device
        machine.place(model)
        average = None
        if average_decay:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average_decay), use_buffers=True)
        return cls(
            model=model,
            optimizer=optimizer(model.parameters(), 0.0, fused=device.type == "cuda"),
            average=average,
            scaler=torch.amp.GradScaler(device.type) if machine.precision == "fp16" else None,
            sums=torch.zeros(3, device=device),
            first_bad_step=torch.full((), -1, dtype=torch.int64, device=device),
        )

    @property
    def trained(self) -> nn.Module:
        """The network that a run keeps: the average where there is one."""
        return self.model if self.average is None else self.average.module


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
    """Take one optimizer step at rate `lr`; return the batch's mean loss, still on the device.

    The host waits for nothing: sums and the first non-finite step stay on the device.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)

    def forward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, mean loss, and what is minimised, scaled as the precision asks for."""
        with machine.autocast():
            logits = model(images)
        loss = total = objective(logits, labels)
        if objective.l1:
            total = total + objective.l1 * sum(weight.abs().sum() for weight in model.parameters())
        return logits, loss, total if scaler is None else scaler.scale(total)

    optimizer.zero_grad(set_to_none=True)
    part = -(-len(images) // 4)
    with (
        uphill(model, lambda: forward(images[:part], labels[:part])[2], objective.sharpness)
        if objective.sharpness
        else contextlib.nullcontext()
    ):
        logits, loss, total = forward(images, labels)
        total.backward()
    if objective.clip_norm:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), objective.clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    if state.average is not None:
        state.average.update_parameters(model)
    loss = loss.detach()
    with torch.no_grad():
        right = (logits.argmax(1) == labels).sum()
        state.sums += torch.stack([loss * len(labels), right, torch.full_like(loss, len(labels))])
        is_first = ~torch.isfinite(loss) & (state.first_bad_step < 0)
        state.first_bad_step.copy_(torch.where(is_first, state.step, state.first_bad_step))
    state.step += 1
    return loss


Step = Callable[..., Tensor]


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
) -> Iterator[Tick]:
    """Train from where `state` is to the end of `epochs`, and yield a `Tick` about every `tick_seconds`.

    schedule: from the step, counted from 0, to the learning rate. The clock stands still while the
    caller has a tick, so evaluation and drawing do not count. Raises Diverged with the step and the
    rate at which the loss stopped being finite.
    """
    steps = epochs * len(batches)
    watch = Stopwatch(machine)
    seconds_before = state.seconds
    epoch_seconds, epoch_first = state.seconds, state.step
    while state.step < steps:
        epoch, first = divmod(state.step, len(batches))
        if first == 0:
            state.sums.zero_()
            epoch_seconds, epoch_first = state.seconds, state.step
        state.model.train()
        last_tick = time.perf_counter()
        watch.start()
        for images, labels in batches.epoch(epoch, first):
            lr = schedule(state.step)
            step(state, images, labels, lr, objective, machine)
            ended = state.step % len(batches) == 0
            if not ended and time.perf_counter() - last_tick < tick_seconds:
                continue
            watch.pause()
            state.seconds = seconds_before + watch.seconds
            _raise_if_diverged(state, schedule)
            done = (state.step - epoch_first) * batches.batch_size
            speed = done / max(state.seconds - epoch_seconds, 1e-9)
            summary = None
            if ended:
                loss, right, seen = state.sums.tolist()
                summary = Epoch(epoch + 1, state.step, lr, loss / seen, right / seen, speed, state.seconds)
            yield Tick(state.step, steps, lr, speed, summary)
            state.model.train()
            last_tick = time.perf_counter()
            watch.start()
        if state.step < (epoch + 1) * len(batches):
            given = state.step - epoch * len(batches)
            raise InputError(f"epoch {epoch + 1} gave {given} batches where {len(batches)} were promised")


def _raise_if_diverged(state: TrainState, schedule: Callable[[int], float]) -> None:
    bad = int(state.first_bad_step)
    if bad >= 0:
        raise Diverged(bad, schedule(bad))
