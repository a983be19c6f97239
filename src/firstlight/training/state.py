"""The state of a training, also as plain tensors and numbers, from which a run goes on to the same bits."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from firstlight.errors import InputError
from firstlight.machine.machine import Machine
from firstlight.machine.ranks import Ranks
from firstlight.training.optimizers import OptimizerSpec


@dataclass
class Best:
    """The weights of the epoch with the highest accuracy on validation images; the earlier one wins a tie."""

    accuracy: float = -math.inf
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, model: nn.Module, epoch: int, accuracy: float) -> None:
        """Take the model's weights if the accuracy is higher than that of all epochs before."""
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.weights = copy.deepcopy(model.state_dict())


@dataclass
class TrainState:
    """Everything that training changes.

    sums: on the device, of the current epoch: loss × images, correct predictions, images.
    first_loss: on the device; the loss of the first step, infinite before it.
    first_bad_step: on the device; the first step whose loss was out of bounds, -1 while there is none.
    seconds: training time so far. best: None where no epoch is chosen on validation images.
    batch_size: images of a step, over all ranks; `fit` sets it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler | None
    sums: Tensor
    first_loss: Tensor
    first_bad_step: Tensor
    step: int = 0
    seconds: float = 0.0
    best: Best | None = None
    batch_size: int = 0

    @classmethod
    def create(
        cls, model: nn.Module, optimizer: OptimizerSpec, machine: Machine, *, average_decay: float = 0.0
    ) -> TrainState:
        """Move a model to the machine and return its state at step 0.

        average_decay: decay per step of the exponential moving average of the weights; 0 for no average.
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
            first_loss=torch.full((), math.inf, device=device),
            first_bad_step=torch.full((), -1, dtype=torch.int64, device=device),
        )

    @property
    def trained(self) -> nn.Module:
        """The network that a run keeps: the average where there is one."""
        return self.model if self.average is None else self.average.module


@dataclass(frozen=True)
class Captured:
    """Everything that the next step depends on. facts: values that JSON keeps exactly."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def capture(state: TrainState) -> Captured:
    """Copy a state to the CPU, between two steps."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    plain: dict[str, Any] = {}
    for index, slots in state.optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{slot}"] = value
            else:
                plain[f"{index}.{slot}"] = value
    tensors |= {"sums": state.sums, "first_loss": state.first_loss, "first_bad_step": state.first_bad_step}
    facts = {
        "step": state.step,
        "seconds": state.seconds,
        "optimizer": plain,
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }
    if state.best is not None:
        best = state.best
        tensors |= {f"best.{name}": value for name, value in best.weights.items()}
        facts |= {"best_accuracy": best.accuracy if best.weights else None, "best_epoch": best.epoch}
    return Captured({name: value.detach().cpu().clone() for name, value in tensors.items()}, facts)


def restore(state: TrainState, captured: Captured) -> None:
    """Set a freshly created state to a captured one; raises InputError where it does not fit."""
    tensors, facts = captured.tensors, captured.facts
    try:
        state.model.load_state_dict(_part(tensors, "model."))
        if state.average is not None:
            state.average.load_state_dict(_part(tensors, "average."))
        _restore_optimizer(state, _part(tensors, "optimizer."), facts["optimizer"])
        state.sums.copy_(tensors["sums"])
        # Checkpoints of earlier versions have no first loss; the next one stands for it.
        state.first_loss.copy_(tensors.get("first_loss", state.first_loss))
        state.first_bad_step.copy_(tensors["first_bad_step"])
        state.step, state.seconds = int(facts["step"]), float(facts["seconds"])
        if state.step < 0 or not 0 <= state.seconds < math.inf:
            raise ValueError(f"step {state.step} after {state.seconds} s")
        if state.scaler is not None:
            state.scaler.load_state_dict(facts["scaler"])
        if state.best is not None and facts["best_accuracy"] is not None:
            weights = _part(tensors, "best.")
            sizes = {name: value.shape for name, value in state.trained.state_dict().items()}
            if {name: value.shape for name, value in weights.items()} != sizes:
                raise ValueError("the best weights are of another network")
            state.best = Best(float(facts["best_accuracy"]), int(facts["best_epoch"]), weights)
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"the checkpoint does not fit this run: {error}") from None


def share(state: TrainState, ranks: Ranks) -> None:
    """Set every rank's state to that of the first."""
    captured = ranks.broadcast(capture(state) if ranks.first else None)
    if not ranks.first and captured is not None:
        restore(state, captured)


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the bits of a network's weights and buffers."""
    sha = hashlib.sha256()
    for value in model.state_dict().values():
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(state: TrainState, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    slots: dict[int, dict[str, Any]] = {}
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    for name, value in [*tensors.items(), *plain.items()]:
        index, slot = name.split(".", 1)
        if isinstance(value, Tensor) and value.ndim and value.shape != weights[int(index)].shape:
            raise ValueError(f"{name} is not as large as its weight")
        if not isinstance(value, (Tensor, int, float)) or not 0 <= int(index) < len(weights):
            raise ValueError(f"{name} is no value of a weight")
        if isinstance(value, Tensor) and value.shape == weights[int(index)].shape:
            # In the weight's memory format and on its device, or every later step would be slower.
            value = torch.empty_like(weights[int(index)], dtype=value.dtype).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
