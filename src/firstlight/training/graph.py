"""A training step as one CUDA graph: the host launches a whole step at once, not each of its operations.

After PyTorch's notes on CUDA graphs, "whole-network capture": a few steps on a side stream, then the capture
of one step. Its images and labels lie at fixed addresses, to which every later batch is copied.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from firstlight.machine.machine import Machine
from firstlight.training.loop import Step, finish_step, train_step, update_weights
from firstlight.training.objective import Objective
from firstlight.training.state import TrainState

WARM_UP = 3
"""Steps before a capture, in which libraries allocate their workspaces and choose their algorithms."""

Replay = Callable[[Tensor, Tensor], Tensor]


def choose_step(state: TrainState, machine: Machine) -> Step:
    """Return how `fit` takes the steps of this state: in a CUDA graph where that fits, else `train_step`."""
    return train_step if _misfit(machine) else GraphStep(state)


def steps_on(machine: Machine) -> str:
    """Say in words how a machine launches a training step, and why.

    A graph holds sharpness-aware steps too, and weight averaging goes on beside it. Loss scaling does not
    fit, since the host decides whether to skip a step; nor does `--determinism bits`, since a captured step
    may use other kernels than one that is not captured.
    """
    reason = _misfit(machine)
    return f"operation by operation: {reason}" if reason else "one CUDA graph a step"


def _misfit(machine: Machine) -> str:
    if machine.device.type != "cuda":
        return f"{machine.device.type} has no CUDA graphs"
    if not machine.ranks.alone:
        return "several ranks"
    if machine.precision == "fp16":
        return "loss scaling needs the host"
    return "--determinism bits" if machine.determinism == "bits" else ""


class GraphStep:
    """Takes the steps of one state by CUDA graphs, one for each shape of a batch; called as `train_step` is.

    Learning rate and step number are tensors on the device, so that a graph serves the whole schedule. The
    loss that a step returns is overwritten by the next. Where a step cannot be captured, as of a network that
    reads values on the host or of an optimizer that counts there, a warning says so, `fits` turns False, and
    `train_step` serves.
    """

    def __init__(self, state: TrainState) -> None:
        device = state.sums.device
        self._state = state
        self._lr = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._replays: dict[tuple[torch.Size, Objective], Replay] = {}
        self.fits = True

    def __call__(
        self,
        state: TrainState,
        images: Tensor,
        labels: Tensor,
        lr: float,
        objective: Objective,
        machine: Machine,
    ) -> Tensor:
        assert state is self._state, "a graph belongs to the tensors that it was captured with"
        self._lr.fill_(lr)
        self._step.fill_(state.step)
        key = images.shape, objective
        # The very first step makes the optimizer's memory, which a capture then finds in its place.
        if key not in self._replays and state.step and self.fits:
            try:
                self._replays[key] = self._capture(images, labels, objective, machine)
            except Exception as error:  # whatever stands against a capture; a real fault shows again below
                self.fits = False
                reason = str(error).partition("\n")[0]
                warnings.warn(f"training goes on without a CUDA graph: {reason}", stacklevel=2)
        if key not in self._replays:
            return train_step(state, images, labels, lr, objective, machine)
        loss = self._replays[key](images, labels)
        # Not in the graph, since the first update of an average differs from all later ones.
        finish_step(state)
        return loss

    def _capture(self, images: Tensor, labels: Tensor, objective: Objective, machine: Machine) -> Replay:
        """Capture a step on batches like this one; nothing of the state is changed."""
        images, labels = images.clone(memory_format=torch.preserve_format), labels.clone()

        def step() -> Tensor:
            return update_weights(self._state, images, labels, self._lr, self._step, objective, machine)

        slots = _slots(self._state)
        if not all(isinstance(value, Tensor) and value.device == images.device for value in slots):
            raise RuntimeError("the optimizer keeps numbers on the host")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), _unchanged(self._state):
            for _ in range(WARM_UP):
                step()
            in_place = list(map(id, slots)) == list(map(id, _slots(self._state)))
        torch.cuda.current_stream().wait_stream(side)
        if not in_place:
            raise RuntimeError("the optimizer makes new tensors in a step")
        graph = torch.cuda.CUDAGraph()
        # The outer `stream` puts the current stream back even where the capture fails.
        with (
            _capturable(self._state.optimizer),
            torch.cuda.stream(side),
            torch.cuda.graph(graph, stream=side),
        ):
            loss = step()

        def replay(next_images: Tensor, next_labels: Tensor) -> Tensor:
            images.copy_(next_images)
            labels.copy_(next_labels)
            graph.replay()
            return loss

        return replay


def _slots(state: TrainState) -> list[Any]:
    """Return what the optimizer remembers from step to step."""
    slots = (value for values in state.optimizer.state.values() for value in values.values())
    return [value for value in slots if value is not None]


@contextlib.contextmanager
def _unchanged(state: TrainState) -> Iterator[None]:
    """Undo in place what steps change: weights, buffers, sums, the optimizer's memory, random streams."""
    optimizer, model = state.optimizer.state, state.model
    slots = {weight: dict(values) for weight, values in optimizer.items()}
    memory = [value for value in _slots(state) if isinstance(value, Tensor)]
    tensors = [
        *model.parameters(),
        *model.buffers(),
        state.sums,
        state.first_loss,
        state.first_bad_step,
        *memory,
    ]
    copies = [tensor.detach().clone() for tensor in tensors]
    device = state.sums.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        optimizer.clear()
        optimizer.update(slots)


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tell an optimizer such as Adam, which asks for it, that its step is being captured."""
    groups = [group for group in optimizer.param_groups if group.get("capturable") is False]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group in groups:
            group["capturable"] = False
