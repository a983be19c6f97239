"""A run that is killed, or whose disk is full, goes on and ends with the bits of one that was left alone."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stopped import assert_readable, finish, newest_step, outcome, start

from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
from firstlight.record.run_folder import RECIPE, RunFolder


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    times: int, whole: tuple[Path, float], tmp_path: Path
) -> None:
    expected, draw, kills_in_training = outcome(whole[0]), random.Random(0), 0
    for number in range(times):
        out, log = tmp_path / f"run{number}", tmp_path / f"log{number}"
        process = start(out, log)
        if number % 2:  # any moment from the first to the last
            process.join(draw.uniform(0.05, whole[1]))
        else:  # a moment of the training itself, however busy the machine is
            epochs = draw.randrange(3)
            while process.is_alive() and not (
                (out / RECIPE).exists() and (newest_step(out) or 0) >= 10 * epochs
            ):
                process.join(0.002)
            process.join(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert_readable(out)
        step = newest_step(out)
        kills_in_training += (out / RECIPE).exists() and not (out / record.SUMMARY).exists()
        words = finish(out, log, resume="auto")
        assert outcome(out) == expected, f"killed once, it ended otherwise:\n{words}"
        assert step is None or f"going on after step {step}" in words or "finished already" in words
        assert not (out / CHECKPOINTS).exists() and not list(out.rglob(".*"))
    assert kills_in_training, "no kill fell into the run itself"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs the rights of an administrator on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_at_twenty_moments_costs_no_checkpoint(
    whole: tuple[Path, float], tiny_disk: Path, tmp_path: Path
) -> None:
    expected, size = outcome(whole[0]), sum(path.stat().st_size for path in whole[0].rglob("*"))
    for moment in range(20):
        out, log, filler = tiny_disk / "run", tmp_path / f"log{moment}", tiny_disk / "filler"
        # Room for a part of what the finished run takes, from almost nothing to almost all.
        filler.write_bytes(b"\0" * (32 * 2**20 - size * (moment + 1) // 21))
        process = start(out, log)
        process.join()
        words, step = log.read_text(), newest_step(out)
        assert process.exitcode and "RunFailed: cannot write" in words and "No space left" in words, words
        if step is not None:
            checkpoint = Checkpoints(RunFolder(out)).last()
            assert checkpoint is not None and checkpoint[1]["state"]["step"] == step
        assert_readable(out)
        filler.unlink()
        finish(out, log, resume="auto")
        assert outcome(out) == expected
        subprocess.run(["rm", "-rf", str(out)], check=True)
