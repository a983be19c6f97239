"""A training state as plain tensors and numbers, and back: a run goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstlight.errors import InputError
from firstlight.training.loop import TrainState


@dataclass(frozen=True)
class Captured:
    """Everything that the next step depends on. facts: values that JSON keeps exactly."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def capture(state: TrainState) -> Captured:
    """Copy a state to the CPU, between two steps."""
    best = state.best
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
    tensors |= {"sums": state.sums, "first_bad_step": state.first_bad_step}
    facts = {
        "step": state.step,
        "seconds": state.seconds,
        "optimizer": plain,
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }
    if best is not None:
        tensors |= {f"best.{name}": value for name, value in best.weights.items()}
        facts |= {"best_accuracy": best.accuracy if best.weights else None, "best_epoch": best.epoch}
    return Captured({name: value.detach().cpu().clone() for name, value in tensors.items()}, facts)


def restore(state: TrainState, captured: Captured) -> None:
    """Give a freshly created state what was captured; raises InputError where it does not fit."""
    tensors, facts, best = captured.tensors, captured.facts, state.best
    try:
        state.model.load_state_dict(_part(tensors, "model."))
        if state.average is not None:
            state.average.load_state_dict(_part(tensors, "average."))
        _restore_optimizer(state, _part(tensors, "optimizer."), facts["optimizer"])
        state.sums.copy_(tensors["sums"])
        state.first_bad_step.copy_(tensors["first_bad_step"])
        state.step, state.seconds = int(facts["step"]), float(facts["seconds"])
        if state.scaler is not None:
            state.scaler.load_state_dict(facts["scaler"])
        if best is not None and facts["best_accuracy"] is not None:
            best.accuracy, best.epoch = float(facts["best_accuracy"]), int(facts["best_epoch"])
            best.weights = _part(tensors, "best.")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint does not fit this run: {error}") from None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(state: TrainState, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    slots: dict[int, dict[str, Any]] = {}
    weights = [weight for group in state.optimizer.param_groups for weight in group["params"]]
    for name, value in [*tensors.items(), *plain.items()]:
        index, slot = name.split(".", 1)
        if isinstance(value, Tensor) and value.shape == weights[int(index)].shape:
            # Laid out as the weight is, on its device, or every later step would be slower.
            value = torch.empty_like(weights[int(index)], dtype=value.dtype).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
