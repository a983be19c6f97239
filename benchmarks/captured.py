"""`train_step` as one CUDA graph: the host launches a whole step at once, not each of its operations.

After PyTorch's notes on CUDA graphs, "whole-network capture": a few steps on a side stream first, then the
capture of one step, whose inputs lie at fixed places that every later batch is copied to. The learning rate
is a tensor on the device, so that one graph serves the whole schedule. Elsewhere than on CUDA, or with loss
scaling, the same step is taken from the same places, operation by operation.

The capture itself has not been run yet: no CUDA machine was at hand. All around it runs in a test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstlight.machine.machine import Machine
from firstlight.training import loop
from firstlight.training.loop import TrainState, train_step
from firstlight.training.objective import Objective

WARM_UP = 3
"""Steps before the capture, in which libraries allocate their workspaces and choose their algorithms."""


@dataclass(frozen=True)
class Place:
    """Where a batch of one shape is put before every step; `take` takes it and returns the mean loss."""

    images: Tensor
    labels: Tensor
    take: Callable[[], Tensor]


class CapturedStep:
    """Takes the steps of one training state; called as `train_step` is.

    graph: capture; otherwise every operation is launched by itself.
    """

    def __init__(self, state: TrainState, *, graph: bool) -> None:
        device = state.sums.device
        self.graph = graph and device.type == "cuda" and state.scaler is None
        self._state = state
        self._lr = torch.zeros((), device=device)
        # The number of the step, which `train_step` counts, has to be counted within the graph as well.
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._places: dict[tuple[int, ...], Place] = {}
        if self.graph:
            for group in state.optimizer.param_groups:
                if "capturable" in group:  # Adam's
                    group["capturable"] = True

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
        shape = tuple(images.shape)
        if shape not in self._places:
            self._places[shape] = self._made(images, labels, objective, machine)
        place = self._places[shape]
        place.images.copy_(images)
        place.labels.copy_(labels)
        loss = place.take()
        state.step += 1
        if state.average is not None:
            # Not in the graph: the first update is another than all later ones.
            state.average.update_parameters(state.model)
        return loss

    def _made(self, images: Tensor, labels: Tensor, objective: Objective, machine: Machine) -> Place:
        images, labels = images.clone(memory_format=torch.preserve_format), labels.clone()

        def take() -> Tensor:
            state = self._state
            step, average = state.step, state.average
            state.step, state.average = self._step, None  # type: ignore[assignment]
            try:
                return train_step(state, images, labels, self._lr, objective, machine)  # type: ignore[arg-type]
            finally:
                state.step, state.average = step, average

        if not self.graph:
            return Place(images, labels, take)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), self._unchanged():
            for _ in range(WARM_UP):
                take()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            loss = take()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return Place(images, labels, replay)

    def restart(self, model: nn.Module) -> None:
        """Begin a training anew, with the weights of another network of the same make, in the same places."""
        state = self._state
        state.model.load_state_dict(model.state_dict())
        if state.average is not None:
            state.average.module.load_state_dict(model.state_dict())
            state.average.n_averaged.zero_()
        for memory in self._memory():
            memory.zero_()
        state.sums.zero_()
        state.first_bad_step.fill_(-1)
        self._step.zero_()
        state.step, state.seconds = 0, 0.0

    def _memory(self) -> list[Tensor]:
        """Return what the optimizer remembers from step to step; all of it begins at zero."""
        slots = self._state.optimizer.state.values()
        return [value for slot in slots for value in slot.values() if isinstance(value, Tensor)]

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put back, in place, whatever steps change."""
        state = self._state
        changing = [*state.model.parameters(), *state.model.buffers(), state.sums, state.first_bad_step]
        kept = [(tensor, tensor.detach().clone()) for tensor in [*changing, self._step, *self._memory()]]
        yield
        known = {id(tensor) for tensor, _ in kept}
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
            for memory in self._memory():
                if id(memory) not in known:  # made by the first step
                    memory.zero_()


@contextlib.contextmanager
def fitting_with(step: CapturedStep) -> Iterator[None]:
    """Let `fit` take its steps so; it looks `train_step` up by its name at every step."""
    usual = loop.train_step
    loop.train_step = step  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.train_step = usual
