"""A run that is killed, starved or stopped goes on, and ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.errors import Diverged, InputError, RunFailed
from firstlight.jobs.train import train
from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.run import Run

# A server that has imported torch once; its children start at once, and in a clean state.
PROCESSES = (
    multiprocessing.get_context("forkserver") if hasattr(os, "fork") else multiprocessing.get_context()
)

SMALL: dict[str, Any] = {
    "train": 240,
    "test": 60,
    "width": 2,
    "batch_size": 20,
    "epochs": 3,
    "peak_lr": 0.05,
    "min_lr": 0.001,
    "device": "cpu",
    "precision": "fp32",
    "average_decay": 0.9,
    "validation": 40,
    "best_on_validation": True,
    "checkpoint_minutes": 0.0,
}
TIMES = {"images_per_second", "train_seconds"}


def work(log: str, settings: dict[str, Any]) -> None:
    """Train in a process of its own, with what it prints in a file."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        train("shapes.demo", **settings)


def started(out: Path, log: Path, **settings: Any) -> multiprocessing.process.BaseProcess:
    process = PROCESSES.Process(target=work, args=(str(log), {**SMALL, "out": str(out), **settings}))
    process.start()
    return process


def outcome(folder: Path) -> dict[str, bytes | list[dict[str, Any]]]:
    """What must not depend on whether a run was stopped: everything but its clock."""
    history = [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in map(json.loads, (folder / record.HISTORY).read_text().splitlines())
    ]
    files = (record.MODEL, record.PREDICTIONS, record.PICTURES, record.MISTAKES, RECIPE)
    return {"history": history, **{name: (folder / name).read_bytes() for name in files}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and the seconds it took."""
    if PROCESSES.get_start_method() == "forkserver":
        PROCESSES.set_forkserver_preload(["firstlight.jobs.train", "firstlight.figures.curves"])
    place = tmp_path_factory.mktemp("whole")
    warm = started(place / "warm", place / "log")  # the server imports torch meanwhile
    warm.join()
    began = time.perf_counter()
    process = started(place / "run", place / "log")
    process.join()
    assert process.exitcode == 0, (place / "log").read_text()
    assert outcome(place / "run") == outcome(place / "warm"), "the same seed gives the same bits"
    return place / "run", time.perf_counter() - began


def readable(folder: Path) -> None:
    """Whatever a killed run left behind must open."""
    if not (folder / RECIPE).exists():
        return
    run = Run(RunFolder.open(folder))
    assert run.recipe.name == "shapes.demo" and run.data.shape == (3, 32, 32)
    assert len(run.history) <= 3 and isinstance(run.summary, dict)


def newest_step(folder: Path) -> int | None:
    steps = [int(path.name[5:13]) for path in (folder / CHECKPOINTS).glob("step-*.safetensors")]
    return max(steps, default=None)


def kill_at_random_moments(times: int, whole: tuple[Path, float], place: Path) -> None:
    reference, seconds = whole
    expected, draw, during = outcome(reference), random.Random(0), 0
    for number in range(times):
        out, log = place / f"run{number}", place / f"log{number}"
        process = started(out, log)
        if number % 2:  # any moment from the first to the last
            process.join(draw.uniform(0.05, seconds))
        else:  # a moment of the training itself, however busy the machine is
            epochs_done = draw.randrange(3)
            while process.is_alive() and not (out / RECIPE).exists():
                process.join(0.002)
            while process.is_alive() and (newest_step(out) or 0) < 10 * epochs_done:
                process.join(0.002)
            process.join(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        readable(out)
        step = newest_step(out)
        during += (out / RECIPE).exists() and not (out / record.SUMMARY).exists()
        again = started(out, log, resume="auto")
        again.join()
        said = log.read_text()
        assert again.exitcode == 0, said
        assert outcome(out) == expected, f"killed once, it ended otherwise:\n{said}"
        assert step is None or f"going on after step {step}" in said or "finished already" in said
        assert not (out / CHECKPOINTS).exists() and not list(out.rglob(".*"))
    assert during, "no kill fell into the run itself"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    kill_at_random_moments(10, whole, tmp_path)


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_killed_at_a_hundred_random_moments_it_ends_with_the_same_bits(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    kill_at_random_moments(100, whole, tmp_path)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs the rights of an administrator on Linux")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_at_twenty_moments_costs_no_checkpoint(
    whole: tuple[Path, float], tiny_disk: Path, tmp_path: Path
) -> None:
    expected, finished = outcome(whole[0]), sum(path.stat().st_size for path in whole[0].rglob("*"))
    for moment in range(20):
        out, log, filler = tiny_disk / "run", tmp_path / f"log{moment}", tiny_disk / "filler"
        # Room for a part of what the finished run takes, from almost nothing to almost all.
        filler.write_bytes(b"\0" * (32 * 2**20 - finished * (moment + 1) // 21))
        process = started(out, log)
        process.join()
        said = log.read_text()
        step = newest_step(out)
        assert process.exitcode and "RunFailed: cannot write" in said and "No space left" in said, said
        if step is not None:
            checkpoint = Checkpoints(RunFolder(out), print).last()
            assert checkpoint is not None and checkpoint[1]["state"]["step"] == step
        readable(out)
        filler.unlink()
        again = started(out, log, resume="auto")
        again.join()
        assert again.exitcode == 0, log.read_text()
        assert outcome(out) == expected
        subprocess.run(["rm", "-rf", str(out)], check=True)


def interrupted(out: Path, **settings: Any) -> None:
    """Stop a run in this process as the first Ctrl-C would, after its first checkpoint."""
    from firstlight.record import checkpoints

    save = checkpoints.Checkpoints.save

    def save_and_interrupt(self: Checkpoints, *values: Any) -> None:
        save(self, *values)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("shapes.demo", **{**SMALL, "out": out, "quiet": True, **settings})


def test_ctrl_c_ends_at_a_whole_step_and_resume_goes_on(whole: tuple[Path, float], tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out)
    assert json.loads((out / "summary.json").read_text())["interrupted"] is True
    assert newest_step(out) is not None
    run = train("shapes.demo", **SMALL, out=out, resume=True, quiet=True)
    assert run.summary.interrupted is False
    assert outcome(out) == outcome(whole[0])


def test_ctrl_c_at_an_epochs_end_leaves_its_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out, checkpoint_minutes=60.0)
    run = Run.open(out)
    assert len(run.history) >= 1 and run.folder.has(record.MODEL)
    assert isinstance(run.model, torch.nn.Module)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    for number, damage in enumerate(DAMAGES):
        out = tmp_path / f"run{number}"
        interrupted(out, checkpoint_minutes=60.0)
        # The first Ctrl-C came with the checkpoint of epoch 1; a second stop leaves two of them.
        interrupted_again(out)
        files = sorted((out / CHECKPOINTS).glob("step-*"))
        assert len(files) == 2
        damage(files[-1])
        said: list[str] = []
        found = Checkpoints(RunFolder(out), said.append).last()
        assert found is not None and found[1]["state"]["step"] == int(files[0].name[5:13])
        assert len(said) == 1 and files[-1].name in said[0]
        train("shapes.demo", **SMALL, out=out, resume=True, quiet=True)
        assert outcome(out) == outcome(whole[0])


def interrupted_again(out: Path) -> None:
    interrupted(out, checkpoint_minutes=60.0, resume=True)


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [_tear, _alter, _empty]


def test_another_recipe_or_other_data_is_refused_and_another_machine_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(out)
    with pytest.raises(InputError, match=r"begun with peak_lr 0\.05, not 0\.04"):
        train("shapes.demo", **{**SMALL, "peak_lr": 0.04}, out=out, resume=True)
    with pytest.raises(InputError, match="begun with precision fp32, not bf16"):
        train("shapes.demo", **{**SMALL, "precision": "bf16"}, out=out, resume=True)
    environment = json.loads((out / "environment.json").read_text())
    digest = environment["data"]["train_sha256"]
    environment["data"]["train_sha256"] = "0" * 64
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(InputError, match="the data is not what"):
        train("shapes.demo", **SMALL, out=out, resume=True)
    environment["data"]["train_sha256"] = digest
    environment |= {"threads": 64, "torch": "2.9.0"}
    (out / "environment.json").write_text(json.dumps(environment))
    capsys.readouterr()
    train("shapes.demo", **SMALL, out=out, resume=True)
    said = capsys.readouterr().out
    assert "threads was 64" in said and "torch was 2.9.0" in said


def test_resume_finds_the_newest_unfinished_run_of_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", **SMALL, resume=True)
    first = train("shapes.demo", **SMALL, resume="auto", quiet=True)
    assert first.folder.path == Path("runs/shapes.demo")
    second = Path("runs/shapes.demo-2")
    interrupted(second)
    assert train("shapes.demo", **SMALL, resume=True, quiet=True).folder.path == second
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", **SMALL, resume=True)
    train("shapes.demo", **SMALL, resume="auto", out=second)
    assert "finished already" in capsys.readouterr().out


def test_killed_between_the_finding_and_the_recipe_it_starts_again_in_place(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupted(out)
    environment = (out / "environment.json").read_bytes()
    for path in list(out.rglob("*")):
        if path.is_file() and path.name not in ("environment.json", "samples.safetensors"):
            path.unlink()
    (out / CHECKPOINTS).rmdir()
    (out / ".summary.json.x.aside").write_text("{")
    train("shapes.demo", **SMALL, out=out, resume="auto", quiet=True)
    assert outcome(out) == outcome(whole[0]) and (out / "environment.json").read_bytes() == environment
    assert not list(out.rglob(".*"))


def test_a_folder_with_other_things_in_it_is_never_resumed_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is no run folder"):
        train("shapes.demo", **SMALL, out=tmp_path, resume="auto")
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_two_processes_cannot_write_into_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out)
    with RunFolder(out).lock(), pytest.raises(InputError, match="another process is writing"):
        train("shapes.demo", **SMALL, out=out, resume=True, quiet=True)
    train("shapes.demo", **SMALL, out=out, resume=True, quiet=True)


def test_a_loss_that_is_not_finite_says_where_and_keeps_what_was_before(tmp_path: Path) -> None:
    settings = {**SMALL, "peak_lr": 1e30, "min_lr": 1e29, "quiet": True}
    with pytest.raises(Diverged, match="step"):
        train("shapes.demo", **settings, out=tmp_path / "run")
    assert Run.open(tmp_path / "run").recipe.peak_lr == 1e30


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's own means")
def test_out_of_memory_proposes_a_batch_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from firstlight.jobs.job import Job
    from firstlight.training import loop

    def hungry(state: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(images) > 7:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return update_weights(state, images, *rest)

    update_weights = loop.update_weights
    monkeypatch.setattr(Job, "describe", lambda self, done=0: [])
    monkeypatch.setattr(loop, "update_weights", hungry)
    with pytest.raises(RunFailed, match=r"batches of 20\n--set batch_size=5 fits here"):
        train("shapes.demo", **SMALL, out=tmp_path / "run", quiet=True)
