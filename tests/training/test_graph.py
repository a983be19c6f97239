"""A step in a CUDA graph trains as the plain step does; here a tape of operations on the CPU is the graph."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from tiny import CPU, TinyNet, image_set
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from firstlight.data.augment import FlipLR
from firstlight.data.batches import Batches
from firstlight.errors import Diverged
from firstlight.machine.machine import Machine
from firstlight.training import graph
from firstlight.training.graph import GraphStep, choose_step, steps_on
from firstlight.training.loop import Step, fit, train_step
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon, OptimizerSpec
from firstlight.training.schedule import Cycle
from firstlight.training.state import Captured, TrainState, capture, restore

GPU = Machine(torch.device("cuda"), "bf16", 1, "test")


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph: records operations, and repeats them on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            inputs = {each.untyped_storage().data_ptr() for each in tensors_in((args, kwargs))}
            for old, new in zip(tensors_in(result), tensors_in(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor written in place
                    old.copy_(new)


def tensors_in(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Stream:
    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let `GraphStep` capture tapes on the CPU, and list them. The states before and after are compared."""
    made: list[Tape] = []

    def tape() -> Tape:
        made.append(Tape())
        return made[-1]

    @contextlib.contextmanager
    def capturing(tape: Tape, stream: Stream) -> Iterator[None]:
        with graph._unchanged(states[-1]), tape:  # a capture computes nothing
            yield

    states: list[TrainState] = []
    original = GraphStep._capture

    def checked(self: GraphStep, *batch: Any) -> Any:
        states.append(self._state)
        before, flags = capture(self._state), capturable(self._state)
        try:
            return original(self, *batch)
        finally:
            assert equal(before, capture(self._state)), "a warm-up trains nothing"
            assert flags == capturable(self._state)

    fakes = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": tape, "graph": capturing}
    for name, fake in {**fakes, "stream": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(GraphStep, "_capture", checked)
    return made


def capturable(state: TrainState) -> list[bool | None]:
    return [group.get("capturable") for group in state.optimizer.param_groups]


def equal(one: Captured, other: Captured) -> bool:
    same = one.tensors.keys() == other.tensors.keys() and one.facts["step"] == other.facts["step"]
    return same and all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


def fresh(
    spec: OptimizerSpec = SGD(), model: nn.Module | None = None, average_decay: float = 0.0
) -> TrainState:
    """Return a state whose optimizer is fused, as on a GPU."""
    state = TrainState.create(model or TinyNet(), spec, CPU, average_decay=average_decay)
    return dataclasses.replace(state, optimizer=spec(state.model.parameters(), 0.0, fused=True))


def train(
    state: TrainState, step: Step, objective: Objective = Objective(), *, stop: int = 12, peak: float = 0.05
) -> TrainState:
    """Train for two epochs of six steps, or as far as `stop`."""
    batches = Batches(image_set(24), 4, (FlipLR(),), seed=0, machine=CPU)
    schedule = Cycle(peak, peak / 10, total_steps=12, peak_step=3)
    how = {"epochs": 2, "machine": CPU, "tick_seconds": 0}
    for tick in fit(state, batches, schedule, objective=objective, step=step, **how):
        if tick.step == stop:
            break
    return state


def close(one: nn.Module, other: nn.Module) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    # Batch norm cancels the convolution's bias: its gradient is rounding, which Adam amplifies.
    names = set(weights) - {"conv.bias", "norm.running_mean"}
    return all(torch.allclose(weights[name], others[name], rtol=1e-4, atol=1e-6) for name in names)


@pytest.mark.parametrize("objective", [Objective(), Objective(0.1, 1e-4, clip_norm=0.5, sharpness=0.1)])
@pytest.mark.parametrize(
    "spec", [SGD(), SGD(0.0), Adam(), AdamW(), Muon(bias_lr_factor=3.0, weight_decay=0.1)], ids=repr
)
def test_a_graph_trains_as_the_plain_step_does(
    spec: OptimizerSpec, objective: Objective, tapes: list[Tape]
) -> None:
    plain = train(fresh(spec, average_decay=0.9), train_step, objective)
    state = fresh(spec, average_decay=0.9)
    train(state, GraphStep(state), objective)
    assert [tape.replays for tape in tapes] == [11]
    assert close(state.model, plain.model) and close(state.trained, plain.trained)
    assert not close(state.model, TinyNet()) and not close(state.model, state.trained)
    assert state.step == plain.step == 12
    torch.testing.assert_close(state.sums, plain.sums, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [SGD(), Adam(), Muon()], ids=repr)
@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_run_is_captured_with_its_state_in_place(
    spec: OptimizerSpec, stop: int, tapes: list[Tape]
) -> None:
    whole, first, second = fresh(spec), fresh(spec), fresh(spec, TinyNet(seed=1))
    train(whole, GraphStep(whole))
    train(first, GraphStep(first), stop=stop)
    restore(second, capture(first))
    train(second, GraphStep(second))
    assert equal(capture(second), capture(whole))
    assert tapes[-1].replays == 12 - stop


def test_each_shape_of_a_batch_has_its_graph(tapes: list[Tape]) -> None:
    state, data = fresh(), image_set(24)
    step = GraphStep(state)
    for count in (4, 4, 6, 4, 4, 6):
        images = data.images[:count].float() / 255
        step(state, images, data.labels[:count], 0.1, Objective(), CPU)
    assert [tape.replays for tape in tapes] == [3, 2] and state.step == 6


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(tapes: list[Tape]) -> None:
    state = fresh()
    with pytest.raises(Diverged) as plain:
        train(fresh(), train_step, peak=1e30)
    with pytest.raises(Diverged) as graphed:
        train(state, GraphStep(state), peak=1e30)
    assert graphed.value.step == plain.value.step > 0 and tapes


class Reading(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2.0 if images.mean().item() > 0 else 1.0)


@dataclasses.dataclass(frozen=True)
class Remembering(SGD):
    """Builds an optimizer that remembers something of every weight, made anew after each step."""

    memory: Callable[[Tensor], object] = torch.ones_like

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        optimizer = super().__call__(parameters, lr)

        def remember(*_: object) -> None:
            for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
                optimizer.state[weight]["memory"] = self.memory(weight)

        optimizer.register_step_post_hook(remember)
        return optimizer


@pytest.mark.parametrize(
    ("spec", "model", "reason"),
    [
        (SGD(), Reading, "not permitted when stream is capturing$"),
        (Remembering(memory=lambda weight: 0), TinyNet, "keeps numbers on the host"),
        (Remembering(), TinyNet, "makes new tensors in a step"),
    ],
)
def test_what_cannot_be_captured_is_trained_plainly_with_one_warning(
    spec: OptimizerSpec, model: type[TinyNet], reason: str, tapes: list[Tape]
) -> None:
    plain, state = train(fresh(spec, model()), train_step), fresh(spec, model())
    with pytest.warns(UserWarning, match=f"goes on without a CUDA graph: .*{reason}") as warnings:
        train(state, GraphStep(state))
    assert len(warnings) == 1 and not any(tape.replays for tape in tapes)
    assert equal(capture(state), capture(plain))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (GPU, "one CUDA graph a step"),
        (CPU, "operation by operation: cpu has no CUDA graphs"),
        (dataclasses.replace(GPU, precision="fp16"), "operation by operation: loss scaling needs the host"),
        (dataclasses.replace(GPU, determinism="bits"), "operation by operation: --determinism bits"),
    ],
)
def test_the_step_is_chosen_by_what_fits_and_named(machine: Machine, words: str) -> None:
    state = fresh()
    assert steps_on(machine) == words
    assert isinstance(choose_step(state, machine), GraphStep) == words.startswith("one")
    assert choose_step(state, CPU) is train_step
