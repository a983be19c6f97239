"""A run that is stopped goes on in its folder, alone there, and says what has changed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped import SMALL, newest_step, outcome, quick_report
from tiny import digest

from firstlight.errors import Diverged, InputError, RunFailed
from firstlight.jobs import job
from firstlight.jobs import train as train_job
from firstlight.jobs.progress import result_lines
from firstlight.jobs.train import train
from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
from firstlight.record.run_folder import RunFolder
from firstlight.run import Run
from firstlight.training import loop


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "report", quick_report)


def again(out: Path, **settings: Any) -> Run:
    return train("shapes.demo", **{**SMALL, "out": out, "resume": True, **settings})


def interrupt(out: Path, **settings: Any) -> None:
    """Stop a run in this process as the first Ctrl-C would, after its first checkpoint."""
    save = Checkpoints.save

    def save_and_interrupt(self: Checkpoints, *values: Any) -> None:
        save(self, *values)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("shapes.demo", **{**SMALL, "out": out, "quiet": True, **settings})


def test_ctrl_c_ends_at_a_whole_step_and_one_process_at_a_time_goes_on(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupt(out)
    assert json.loads((out / "summary.json").read_text())["interrupted"] is True
    assert newest_step(out) is not None
    with RunFolder(out).lock():
        assert (tmp_path / ".run.lock").exists() and not (out / ".run.lock").exists()
        with pytest.raises(InputError, match="another process is writing"):
            again(out, quiet=True)
    assert not (tmp_path / ".run.lock").exists()
    assert again(out, quiet=True).summary.interrupted is False
    assert outcome(out) == outcome(whole[0])


def test_ctrl_c_at_an_epochs_end_leaves_its_weights(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", checkpoint_minutes=60.0)
    run = Run.open(tmp_path / "run")
    assert len(run.history) >= 1 and run.folder.has(record.MODEL)
    assert isinstance(run.model, torch.nn.Module)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[bytes], bytes],
    whole: tuple[Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    # The first Ctrl-C comes with the checkpoint of epoch 1; a second stop leaves two of them.
    interrupt(out, checkpoint_minutes=60.0)
    interrupt(out, checkpoint_minutes=60.0, resume=True)
    before, last = sorted((out / CHECKPOINTS).glob("step-*"))
    last.write_bytes(damage(last.read_bytes()))
    capsys.readouterr()
    again(out)
    words = capsys.readouterr().out
    assert last.name in words and f"going on after step {int(before.name[5:13])}" in words
    assert outcome(out) == outcome(whole[0])


def test_another_recipe_or_other_data_is_refused_and_another_machine_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupt(out)
    with pytest.raises(InputError, match=r"begun with peak_lr 0\.05, not 0\.04"):
        again(out, peak_lr=0.04)
    with pytest.raises(InputError, match="begun with precision fp32, not bf16"):
        again(out, precision="bf16")
    environment = json.loads((out / "environment.json").read_text())
    changed = environment | {"data": environment["data"] | {"train_sha256": "0" * 64}}
    (out / "environment.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="the data is not what"):
        again(out)
    (out / "environment.json").write_text(json.dumps(environment | {"threads": 64, "torch": "2.9.0"}))
    again(out)
    words = capsys.readouterr().out
    assert "threads was 64" in words and "torch was 2.9.0" in words


def test_resume_finds_the_newest_unfinished_run_of_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", **SMALL, resume=True)
    first = train("shapes.demo", **SMALL, resume="auto", quiet=True)
    assert first.path == Path("runs/shapes.demo")
    second = Path("runs/shapes.demo-2")
    interrupt(second)
    assert train("shapes.demo", **SMALL, resume=True, quiet=True).path == second
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", **SMALL, resume=True)
    train("shapes.demo", **SMALL, resume="auto", out=second)
    assert "finished already" in capsys.readouterr().out


def test_killed_between_the_finding_and_the_recipe_it_starts_again_in_place(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupt(out)
    environment = (out / "environment.json").read_bytes()
    for path in list(out.rglob("*")):
        if path.is_file() and path.name not in ("environment.json", "samples.safetensors"):
            path.unlink()
    (out / CHECKPOINTS).rmdir()
    (out / ".summary.json.x.aside").write_text("{")
    again(out, resume="auto", quiet=True)
    assert outcome(out) == outcome(whole[0]) and (out / "environment.json").read_bytes() == environment
    assert not list(out.rglob(".*"))


def test_a_folder_with_other_things_in_it_is_never_resumed_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is no run folder"):
        again(tmp_path, resume="auto")
    assert (tmp_path / "thesis.txt").read_text() == "years"


def in_shell(cwd: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "firstlight", "train", "shapes.demo", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sigterm_during_the_learning_rate_finder_leaves_nothing(tmp_path: Path) -> None:
    process = in_shell(tmp_path, "--set", "train=600", "--set", "test=20", "--device", "cpu")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("about"):  # the line before the finder starts
        assert process.poll() is None
    assert (tmp_path / "runs" / "shapes.demo").is_dir() and (tmp_path / "runs" / ".shapes.demo.lock").exists()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.strip()) == (130, "firstlight: stopped")
    assert not list((tmp_path / "runs").iterdir())


def test_a_second_process_is_refused_with_one_line(tmp_path: Path) -> None:
    interrupt(tmp_path / "run")
    options = {"epochs": 3, "device": "cpu", "precision": "fp32", "checkpoint_minutes": 0}
    flags = [word for key, value in options.items() for word in ("--" + key.replace("_", "-"), value)]
    flags += [word for key in SMALL.keys() - options for word in ("--set", f"{key}={SMALL[key]}")]
    with RunFolder(tmp_path / "run").lock():
        process = in_shell(tmp_path, *flags, "--out", "run", "--resume")
        _, error = process.communicate(timeout=120)
    message = "firstlight: another process is writing into run"
    assert (process.returncode, error.splitlines()[0]) == (2, message) and error.count("\n") == 2


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_a_user_without_an_account_can_train() -> None:
    code = """
import os
from firstlight.jobs.progress import result_lines
from firstlight.jobs.train import train
settings = dict(train=40, test=20, width=2, batch_size=20, epochs=1, peak_lr=0.05, min_lr=0.001, quiet=True)
train("shapes.demo", out="mine", **settings)  # loads what that user may not be allowed to read
os.chown(".", 12345, 12345)
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
train("shapes.demo", out="theirs", **settings)
assert sorted(os.listdir()) == ["mine", "theirs"] and os.stat("theirs").st_uid == 12345
"""
    unknown = ("FIRSTLIGHT_CACHE", "HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {key: value for key, value in os.environ.items() if key not in unknown}
    # Not pytest's temporary folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment | {"HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr


def test_a_loss_that_is_not_finite_says_where_and_keeps_what_was_before(tmp_path: Path) -> None:
    settings = {**SMALL, "peak_lr": 1e30, "min_lr": 1e29, "quiet": True}
    with pytest.raises(Diverged, match="step"):
        train("shapes.demo", **settings, out=tmp_path / "run")
    assert Run.open(tmp_path / "run").recipe.schedule.peak_lr == 1e30


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes.")]
)
def test_out_of_memory_proposes_a_batch_that_fits(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.train_step

    def hungry(state: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(images) > 7:
            raise error
        return step(state, images, *rest)

    monkeypatch.setattr(job, "train_step", hungry)
    monkeypatch.setattr(train_job, "choose_step", lambda *_: hungry)
    monkeypatch.setattr(job.Job, "describe", lambda self, done=0: [])
    with pytest.raises(RunFailed, match=r"batches of 20\n--set batch_size=5 fits here"):
        train("shapes.demo", **SMALL, out=tmp_path / "run", quiet=True)


def test_a_run_that_diverges_starts_again_at_half_the_rates_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = loop.train_step, list[float]()

    def fragile(state: Any, images: torch.Tensor, labels: torch.Tensor, lr: float, *rest: Any) -> Any:
        seen.append(lr)
        loss = step(state, images, labels, lr, *rest)
        if lr > 0.03:
            state.first_bad_step.fill_(state.step - 1)
        return loss

    monkeypatch.setattr(train_job, "choose_step", lambda state, machine: fragile)
    settings = {**SMALL, "peak_lr": 0.1, "min_lr": 0.01, "quiet": True}
    with pytest.raises(Diverged, match="peak_lr="):
        train("shapes.demo", **settings, out=tmp_path / "stops")
    run = train("shapes.demo", **settings, on_divergence="halve", out=tmp_path / "halves")
    assert (run.summary.halvings, run.summary.peak_lr, run.summary.min_lr) == (2, 0.025, 0.0025)
    assert run.is_finished and max(seen[-run.history.epochs[-1].step :]) == 0.025
    monkeypatch.undo()
    plain = train("shapes.demo", **{**settings, "peak_lr": 0.025, "min_lr": 0.0025}, out=tmp_path / "plain")
    assert digest(run.model.state_dict().values()) == digest(plain.model.state_dict().values())
    assert "halved 2 times" in "\n".join(result_lines(run.summary, 20, 1))
