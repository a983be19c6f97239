"""Several processes train as one does: the same images, the same weights, the same answers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped import PROCESSES, SMALL, newest_step, outcome, quick_report
from tiny import CPU, TinyNet, image_set

from firstlight.data.augment import Crop, FlipLR
from firstlight.data.batches import Batches
from firstlight.errors import InputError
from firstlight.insight.evaluation import evaluate
from firstlight.jobs.train import train
from firstlight.machine.machine import choose
from firstlight.machine.ranks import join
from firstlight.record import record
from firstlight.run import Run
from firstlight.training.loop import fit
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD
from firstlight.training.state import TrainState

Process = Any
if PROCESSES.get_start_method() == "forkserver":
    PROCESSES.set_forkserver_preload(["stopped", "firstlight.jobs.train"])


def _run(rank: int, count: int, port: int, log: str, work: Callable[..., None], *args: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        work(*args)


def start(count: int, log: Path, work: Callable[..., None], *args: Any) -> list[Process]:
    """Start processes as torchrun does; all print into one file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        PROCESSES.Process(target=_run, args=(rank, count, port, str(log), work, *args))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def finish(count: int, log: Path, work: Callable[..., None], *args: Any) -> str:
    processes = start(count, log, work, *args)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count, log.read_text()
    return log.read_text()


def twenty_steps(path: Path | None, sharpness: float, batch_norm: str) -> dict[str, Any]:
    """Train a small network for two epochs of ten uneven batches; return all that follows from it."""
    with join("cpu") as ranks:
        machine = choose("cpu", "fp32", tune_memory=False)
        images = image_set(137)
        batches = Batches(images, 13, (Crop(8, 1), FlipLR()), seed=3, machine=machine)
        order = Batches(images, 13, seed=3, machine=machine)
        shown = [image.tolist() for epoch in range(2) for batch, _ in order.epoch(epoch) for image in batch]
        state = TrainState.create(TinyNet(), SGD(), machine, average_decay=0.9)
        objective = Objective(0.1, l1=1e-4, clip_norm=1.0, sharpness=sharpness)
        ticks = list(
            fit(
                state,
                batches,
                lambda step: 0.05,
                epochs=2,
                machine=machine,
                objective=objective,
                batch_norm=batch_norm,
            )
        )
        epochs = [tick.epoch for tick in ticks if tick.epoch is not None]
        rows = evaluate(state.trained, image_set(10_001), machine).probabilities
        result = {
            "weights": {name: value.clone() for name, value in state.model.state_dict().items()},
            "losses": [epoch.train_loss for epoch in epochs],
            "accuracies": [epoch.train_accuracy for epoch in epochs],
            "probabilities": rows,
            "shown": ranks.gather(shown),
        }
        if path is not None and ranks.rank == ranks.count - 1:
            torch.save(result, path)
    return result


@pytest.mark.parametrize(("count", "sharpness"), [(2, 0.0), (3, 0.0), (3, 0.02)])
def test_ranks_end_where_one_process_ends(count: int, sharpness: float, tmp_path: Path) -> None:
    one = twenty_steps(None, sharpness, "synchronised")
    finish(count, tmp_path / "log", twenty_steps, tmp_path / "out", sharpness, "synchronised")
    several = torch.load(tmp_path / "out", weights_only=True)
    for name, value in one["weights"].items():
        # A variance is of activations, which add up the differences of many weights.
        most = 3e-5 if name.endswith("running_var") else 1e-5
        assert float((several["weights"][name] - value).abs().max()) <= most, name
    assert several["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert several["accuracies"] == one["accuracies"]
    # The networks differ in their last bits, so their answers may where two classes are nearly as probable.
    predictions = one["probabilities"].argmax(1), several["probabilities"].argmax(1)
    assert len(predictions[1]) == 10_001 and torch.equal(*predictions)
    # Every image is shown once an epoch by one of the ranks, and none twice.
    parts = several["shown"]
    assert len(parts) == count and len({len(part) for part in parts}) == 2, "13 images are dealt out unevenly"
    assert sorted(itertools.chain(*parts)) == sorted(one["shown"][0])


def test_ghost_batch_norm_is_another_recipe_with_equal_ranks(tmp_path: Path) -> None:
    one = twenty_steps(None, 0.0, "ghost")
    finish(2, tmp_path / "log", twenty_steps, tmp_path / "out", 0.0, "ghost")  # its ranks compare weights
    several = torch.load(tmp_path / "out", weights_only=True)
    assert not torch.allclose(one["weights"]["conv.weight"], several["weights"]["conv.weight"], atol=1e-4)


def answers(path: Path) -> None:
    with join("cpu") as ranks:
        evaluation = evaluate(TinyNet().eval(), image_set(10_001), choose("cpu", "fp32", tune_memory=False))
        if ranks.first:
            torch.save(evaluation.probabilities, path)


def test_the_same_weights_give_the_same_bits_for_every_test_image(tmp_path: Path) -> None:
    finish(3, tmp_path / "log", answers, tmp_path / "out")
    alone = evaluate(TinyNet(), image_set(10_001), CPU).probabilities
    assert torch.equal(torch.load(tmp_path / "out", weights_only=True), alone)


def differ() -> None:
    with join("cpu") as ranks:
        machine = choose("cpu", "fp32", tune_memory=False)
        state = TrainState.create(TinyNet(seed=ranks.rank), SGD(), machine)
        list(
            fit(
                state,
                Batches(image_set(), 12, seed=0, machine=machine),
                lambda step: 0.1,
                epochs=1,
                machine=machine,
            )
        )


def test_ranks_whose_weights_differ_stop_with_one_line(tmp_path: Path) -> None:
    processes = start(2, tmp_path / "log", differ)
    for process in processes:
        process.join(60)
    assert all(process.exitcode for process in processes)
    words = (tmp_path / "log").read_text()
    assert words.count("RunFailed: the weights of rank 1 differ from those of rank 0 after epoch 1") == 1


def work(settings: dict[str, Any]) -> None:
    from firstlight import cli
    from firstlight.cli import training

    Run.report = quick_report  # type: ignore[method-assign, assignment]

    def callback(**_: Any) -> None:
        train("shapes.demo", **settings)

    training.train.callback = callback
    cli.main(["train", "shapes.demo"])


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    words = finish(2, folder / "log", work, {**SMALL, "out": str(folder / "run")})
    assert words.count("test accuracy") == 1 and "2 processes share each batch of 20" in words
    return folder / "run"


def stop(
    out: Path, log: Path, number: int, which: Callable[[list[Process]], Iterator[Process] | list[Process]]
) -> str:
    """Send a signal to some of two ranks while they train; return what was printed within a minute."""
    processes = start(2, log, work, {**SMALL, "epochs": 3, "out": str(out)})
    deadline = time.monotonic() + 60
    while (newest_step(out) or 0) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    before = time.monotonic()
    for process in which(processes):
        os.kill(process.pid, number)
    for process in processes:
        process.join(60)
    assert not any(process.is_alive() for process in processes) and time.monotonic() - before < 60
    return log.read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_with_one_line_and_it_goes_on_to_the_same_bits(
    victim: int, left_alone: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = stop(out, log, signal.SIGKILL, lambda processes: [processes[victim]])
    assert words.count("firstlight: a process of this run ended") == 1 and "Traceback" not in words, words
    again = finish(2, tmp_path / "again", work, {**SMALL, "out": str(out), "resume": True})
    assert "going on after step" in again and outcome(out) == outcome(left_alone)


def test_terminated_it_stops_at_a_checkpoint_and_another_number_of_ranks_is_refused(
    left_alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = stop(out, tmp_path / "log", signal.SIGTERM, list)
    assert "stopped after step" in words and "Traceback" not in words, words
    with pytest.raises(InputError, match="was begun by 2 processes, and one process would go on"):
        train("shapes.demo", **{**SMALL, "out": out, "resume": True})
    finish(2, tmp_path / "again", work, {**SMALL, "out": str(out), "resume": True})
    assert outcome(out) == outcome(left_alone)
    environment = json.loads((out / record.ENVIRONMENT).read_text())
    assert (environment["ranks"], environment["batch_norm"]) == (2, "synchronised")


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    processes = start(2, tmp_path / "log", work, {**SMALL, "out": str(tmp_path / "run"), "batch_size": 5})
    for process in processes:
        process.join(60)
    words = (tmp_path / "log").read_text()
    assert words.count("a batch of 5 is too small for 2 processes") == 1, words
    assert [process.exitcode for process in processes] == [2, 2] and not (tmp_path / "run").exists()
