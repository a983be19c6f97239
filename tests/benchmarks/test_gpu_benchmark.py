"""The benchmark for GPUs runs its whole way on a CPU at toy size; only the graph itself needs a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import CPU, TinyNet, image_set

from benchmarks.measure import read_rows
from benchmarks.speed import gpu, gpu_worker
from firstlight.data.augment import FlipLR
from firstlight.data.batches import Batches
from firstlight.training.loop import fit
from firstlight.training.optimizers import SGD, Adam, Muon, OptimizerSpec
from firstlight.training.schedule import Cycle
from firstlight.training.state import TrainState, capture

HERE = ["--toy", "--device", "cpu", "--precision", "fp32"]


def test_the_whole_way_at_toy_size(tmp_path: Path) -> None:
    kept = tmp_path / "rows.csv"
    words = ["shapes.demo", "--runs", "3", "--seed", "5", "--record", "--results", str(kept)]
    gpu.main([*HERE, *words, "--set", "batch_size=15"])
    *runs, medians = read_rows(kept)
    assert [(row["seed"], row["start"]) for row in runs] == [("5", "cold"), ("6", "warm"), ("7", "warm")]
    assert [bool(row["cold_seconds"]) for row in runs] == [True, False, False]
    for row in runs:
        assert (row["recipe"], row["epochs"], row["step"]) == ("shapes.demo", "2", "operation by operation")
        assert row["settings"] == "batch_size=15"
        parts = float(row["train_seconds"]) + float(row["tta_seconds"])
        assert 0 < parts == pytest.approx(float(row["clock_seconds"]))
        assert float(row["test_low_95"]) <= float(row["test_accuracy"]) <= float(row["test_high_95"])
    assert float(runs[0]["cold_seconds"]) > float(runs[0]["clock_seconds"])
    warm = sorted(float(row["clock_seconds"]) for row in runs[1:])
    assert float(medians["clock_seconds"]) == pytest.approx(sum(warm) / 2)
    assert medians["test_accuracy"] == "" and medians["note"] == "medians of 2 warm runs"


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


def test_it_measures_against_airbench_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_wrong_words_end_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Did you mean 'cifar10\.fast'"):
        gpu.main([*HERE, "shapes.demo", "cifar10.fats"])
    for words in (["--runs", "0"], ["--record"]):
        with pytest.raises(SystemExit) as ended:
            gpu.main([*HERE, *words])
        assert ended.value.code == 2
    with pytest.raises(SystemExit, match="process that trains ended"):
        gpu.main(["cifar10.fast", "--data-dir", str(tmp_path), "--device", "cpu", "--runs", "1"])


@pytest.mark.parametrize("optimizer", [SGD(), Adam(), Muon()], ids=str)
def test_a_second_run_in_the_same_memory_is_as_if_it_were_the_first(optimizer: OptimizerSpec) -> None:
    def train(seed: int, state: TrainState) -> None:
        batches = Batches(image_set(24), 4, (FlipLR(),), seed=seed, machine=CPU)
        list(fit(state, batches, Cycle(0.05, 0.005, 12, 3), epochs=2, machine=CPU))

    state = TrainState.create(TinyNet(seed=1), optimizer, CPU, average_decay=0.5)
    train(1, state)
    addresses = [weight.data_ptr() for weight in state.model.parameters()]
    gpu_worker.restart(state, TinyNet(seed=0))
    train(0, state)
    alone = TrainState.create(TinyNet(seed=0), optimizer, CPU, average_decay=0.5)
    train(0, alone)
    tensors, expected = capture(state).tensors, capture(alone).tensors
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert addresses == [weight.data_ptr() for weight in state.model.parameters()]
