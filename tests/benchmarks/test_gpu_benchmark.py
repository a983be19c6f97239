"""The benchmark for GPUs runs its whole way on a CPU at toy size; only the graph itself needs a GPU."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import CPU, TinyNet, image_set
from torch import nn

from benchmarks.measure import read_rows
from benchmarks.speed import gpu, gpu_worker
from firstlight.data.augment import FlipLR
from firstlight.data.batches import Batches
from firstlight.errors import Diverged
from firstlight.recipes import RECIPES, named
from firstlight.training import loop
from firstlight.training.loop import TrainState, fit
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon
from firstlight.training.schedule import OneCycle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HERE = ["--toy", "--device", "cpu", "--precision", "fp32"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give a benchmark as a module; what it imports from beside it is forgotten again with it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield script("captured", monkeypatch)


def test_the_whole_way_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "rows.csv"
    gpu.main([*HERE, "shapes.demo", "--runs", "3", "--seed", "5", "--record", "--results", str(kept)])
    output = capsys.readouterr().out
    *runs, medians = read_rows(kept)
    assert [(row["seed"], row["start"]) for row in runs] == [("5", "cold"), ("6", "warm"), ("7", "warm")]
    assert [bool(row["cold_seconds"]) for row in runs] == [True, False, False]
    for row in runs:
        assert (row["recipe"], row["epochs"], row["step"]) == ("shapes.demo", "2", "operation by operation")
        parts = float(row["train_seconds"]) + float(row["tta_seconds"])
        assert 0 < parts == pytest.approx(float(row["clock_seconds"]))
        assert float(row["test_low_95"]) <= float(row["test_accuracy"]) <= float(row["test_high_95"])
        assert f"seed {row['seed']}, {row['start']}: " in output
    assert float(runs[0]["cold_seconds"]) > float(runs[0]["clock_seconds"])
    warm = sorted(float(row["clock_seconds"]) for row in runs[1:])
    assert float(medians["clock_seconds"]) == pytest.approx(sum(warm) / 2)
    assert medians["test_accuracy"] == "" and medians["note"] == "medians of 2 warm runs"
    assert all(words in output for words in ("n = 3", "without TTA", "cold  ", "warm  "))


STUB = '''
import torch


def train94(run):
    """Print what airbench prints, once it has found its data where it looks for it."""
    assert run == 0
    train = torch.load("cifar10/train.pt", map_location="cpu")
    assert train["images"].shape == (60, 32, 32, 3) and train["images"].dtype == torch.uint8
    assert len(train["labels"]) == 60 and len(train["classes"]) == 10
    assert len(torch.load("cifar10/test.pt")["labels"]) == 40
    print("|  run     |  epoch  |  train_loss  |  val_acc  |  tta_val_acc  |  total_time_seconds  |")
    print("|       0  |      0  |      1.5000  |   0.5000  |               |              1.0000  |")
    print("|          |   eval  |      1.2000  |   0.9300  |       0.9401  |            %.4f  |" % 250.5)
    print("-" * 40)
'''


def test_it_measures_against_airbench_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "airbench.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    kept = tmp_path / "rows.csv"
    gpu.main(
        [*HERE, "cifar10.fast", "--runs", "2", "--against", "airbench", "--record", "--results", str(kept)]
    )
    *runs, medians = read_rows(kept)
    assert len(runs) == 2
    for row in runs:
        assert (row["baseline"], row["baseline_clock_seconds"]) == ("airbench 0.1.8, train94", "250.5")
        assert (row["baseline_test_accuracy"], row["baseline_test_accuracy_tta"]) == ("0.93", "0.9401")
    assert float(medians["ratio"]) == pytest.approx(250.5 / float(runs[1]["clock_seconds"]))
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_toy_size(name: str) -> None:
    recipe = gpu_worker.toy(named(name))
    train, test = recipe.data.load(None)
    assert (len(train), len(test)) == (60, 40) and recipe.epochs == 2
    assert recipe.peak_lr is not None and recipe.min_lr is not None
    assert recipe.optimizer == named(name).optimizer and recipe.augment == named(name).augment


def test_wrong_words_end_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Did you mean 'cifar10\.fast'"):
        gpu.main([*HERE, "shapes.demo", "cifar10.fats"])
    for words in (["--runs", "0"], ["--record"]):
        with pytest.raises(SystemExit) as ended:
            gpu.main([*HERE, *words])
        assert ended.value.code == 2
    with pytest.raises(SystemExit, match="process that trains ended"):
        gpu.main(["cifar10.fast", "--data-dir", str(tmp_path), "--device", "cpu", "--runs", "1"])


# --- the step ---


def trained(optimizer: Any, step: Any = None, *, average: float = 0.0, seed: int = 0) -> TrainState:
    """Train a tiny network for two epochs of six steps, by `step` made for its state, or as usual."""
    batches = Batches(image_set(24), 4, (FlipLR(),), seed=seed, machine=CPU)
    state = TrainState.create(TinyNet(seed=seed), optimizer, CPU, average_decay=average)
    return fitted(state, batches, None if step is None else step(state))


def fitted(state: TrainState, batches: Batches, step: Any, peak: float = 0.05) -> TrainState:
    schedule = OneCycle(peak, peak / 10, total_steps=12, peak_step=3)
    with contextlib.ExitStack() as fitting:
        if step is not None:
            fitting.enter_context(sys.modules["captured"].fitting_with(step))
        for _ in fit(state, batches, schedule, epochs=2, machine=CPU):
            pass
    return state


def same(one: nn.Module, other: nn.Module) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    # Batch norm takes the convolution's bias out again: its gradient is rounding, which Adam blows up.
    names = set(weights) - {"conv.bias", "norm.running_mean"}
    return all(torch.allclose(weights[name], others[name], rtol=1e-4, atol=1e-6) for name in names)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(), SGD(momentum=0, nesterov=False), Adam(), AdamW(), Muon(bias_rate=3.0, weight_decay=0.1)],
    ids=str,
)
def test_the_step_from_fixed_places_trains_as_the_usual_one(optimizer: Any, captured: ModuleType) -> None:
    usual = trained(optimizer, average=0.9)
    ours = trained(optimizer, lambda state: captured.CapturedStep(state, graph=True), average=0.9)
    assert same(ours.model, usual.model) and same(ours.trained, usual.trained)
    assert not same(ours.model, TinyNet()), "it has trained"
    assert (ours.step, usual.step) == (12, 12) and torch.allclose(ours.sums, usual.sums)
    assert loop.train_step.__module__ == "firstlight.training.loop", "the usual step is back"


@pytest.mark.parametrize("optimizer", [SGD(), Adam(), Muon()], ids=str)
def test_a_second_run_in_the_same_places_is_as_if_it_were_the_first(
    optimizer: Any, captured: ModuleType
) -> None:
    state = TrainState.create(TinyNet(seed=1), optimizer, CPU, average_decay=0.5)
    step = captured.CapturedStep(state, graph=True)
    fitted(state, Batches(image_set(24), 4, (FlipLR(),), seed=1, machine=CPU), step)
    places = [weight.data_ptr() for weight in state.model.parameters()]
    step.restart(TinyNet(seed=0))
    fitted(state, Batches(image_set(24), 4, (FlipLR(),), seed=0, machine=CPU), step)
    alone = trained(optimizer, lambda state: captured.CapturedStep(state, graph=True), average=0.5)
    assert same(state.model, alone.model) and same(state.trained, alone.trained)
    assert places == [weight.data_ptr() for weight in state.model.parameters()]


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(captured: ModuleType) -> None:
    steps = []
    for step in (None, lambda state: captured.CapturedStep(state, graph=True)):
        state = TrainState.create(TinyNet(), SGD(), CPU)
        batches = Batches(image_set(24), 4, seed=0, machine=CPU)
        with pytest.raises(Diverged) as ended:
            fitted(state, batches, step and step(state), peak=1e30)
        steps.append(ended.value.step)
    assert steps[0] == steps[1] > 0


class FakeGraph:
    """Stands for a CUDA graph: it counts its replays."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None:
        assert isinstance(other, FakeStream)


def test_the_capture_warms_up_without_training_once_for_each_shape(
    captured: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[FakeGraph] = []
    before_capture: list[dict[str, torch.Tensor]] = []
    state = TrainState.create(TinyNet(), Adam(), CPU)
    begun = copy.deepcopy(state.model.state_dict())

    def graph() -> FakeGraph:
        graphs.append(FakeGraph())
        return graphs[-1]

    @contextlib.contextmanager
    def capturing(made: FakeGraph, stream: FakeStream) -> Iterator[None]:
        before_capture.append(copy.deepcopy(state.model.state_dict()))
        memory = [value for slots in state.optimizer.state.values() for value in slots.values()]
        assert memory and not any(value.any() for value in memory)
        assert (
            not state.sums.any() and int(state.first_bad_step) == -1 and state.step == len(before_capture) - 1
        )
        with step._unchanged():  # a capture computes nothing
            yield

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    step = captured.CapturedStep(state, graph=False)
    step.graph = True
    data = image_set(24)
    images, labels = data.images.float() / 255, data.labels
    objective = loop.Objective()
    for count in (4, 6, 4, 4):
        step(state, images[:count], labels[:count], 0.1, objective, CPU)
    assert [made.replays for made in graphs] == [3, 1] and state.step == 4
    for weights in before_capture:
        assert all(torch.equal(weights[name], value) for name, value in begun.items())
