"""A Ray cluster of two nodes on this machine: what it loses is done elsewhere, and comes out the same."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from firstlight.jobs.sweep import sweep
from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS
from firstlight.record.run_folder import RECIPE
from firstlight.record.sweep import Sweep
from firstlight.run import Run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed, so no cell ran on a cluster: pip install 'firstlight[cluster]'",
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="Ray makes a cluster of one machine on Linux alone"),
]

AXES = {
    **{"train": ["700"], "test": ["60"], "width": ["4"], "batch_size": ["20"], "min_lr": ["0.001"]},
    **{"validation": ["100"], "peak_lr": ["0.02", "0.05", "0.1", "0.2"]},
}
T = TypeVar("T")
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
SMALL = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]


def wait_until(found: Callable[[], T], what: str, seconds: float = 240) -> T:
    """Return what is found as soon as it is anything."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"waited {seconds} s: {what}"
        time.sleep(0.05)
    return value


def children(parent: int) -> dict[int, str]:
    """Return the processes below another one, at any depth, each with its title."""
    lines = subprocess.check_output(["ps", "-eo", "pid=,ppid=,args="], text=True).splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    found: dict[int, str] = {}
    parents = {parent}
    while parents:
        level = {int(pid): args for pid, above, args in rows if int(above) in parents}
        found |= level
        parents = {*level}
    return found


class Cluster:
    """Two `ray start --block`, each in a session of its own; a token of this test keeps others out.

    Ray gives its nodes the machine's own address where it is told 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            **{"HOME": str(folder), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            "PYTHONPATH": str(Path(record.__file__).parents[2]),
        }
        self.nodes: list[subprocess.Popen[bytes]] = []
        head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        self._start([*head, "--node-ip-address=127.0.0.1"])
        self._start([f"--address=127.0.0.1:{port}"])
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"

    def _start(self, options: list[str]) -> None:
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as file:
            command = [*RAY, *options, *SMALL]
            self.nodes.append(
                subprocess.Popen(
                    command, stdout=file, stderr=file, env=self.environment, start_new_session=True
                )
            )
        wait_until(lambda: "Ray runtime started" in log.read_text(), f"for a node: {log}")

    def workers(self, node: int) -> list[int]:
        """Return the processes of a node that train a cell at this moment."""
        below = children(self.nodes[node].pid)
        return [pid for pid, title in below.items() if title.startswith("ray::firstlight")]

    def stop(self, node: int) -> None:
        below = children(self.nodes[node].pid)
        self.nodes[node].terminate()
        try:
            self.nodes[node].wait(20)
        except subprocess.TimeoutExpired:
            self.nodes[node].kill()
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # A short path: the sockets of Ray lie in it.
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            for node in range(len(made.nodes)):
                if made.nodes[node].poll() is None:
                    made.stop(node)


def begin(cluster: Cluster, out: Path, log: Path) -> subprocess.Popen[bytes]:
    pairs = [f"--set={key}={','.join(values)}" for key, values in AXES.items()]
    options = ["--seeds=2", "--epochs=4", "--precision=fp32", "--on=ray", f"--out={out.name}"]
    command = [sys.executable, "-m", "firstlight", "sweep", "shapes.demo", *pairs, *options]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=out.parent, stdout=file, stderr=file, env=cluster.environment)


def in_work(out: Path, since: float = 0) -> dict[Path, int]:
    """Return the cells with a checkpoint that is younger, and when each was begun."""
    steps = out.glob(f"*/*/{CHECKPOINTS}/step-*.safetensors")
    cells = set()
    for path in steps:
        with contextlib.suppress(FileNotFoundError):  # finished meanwhile
            if path.stat().st_mtime > since:
                cells.add(path.parents[1])
    return {path: (path / RECIPE).stat().st_mtime_ns for path in cells}


def test_ctrl_c_a_killed_worker_and_a_stopped_node_change_no_bit(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "cluster", tmp_path / "log"
    driver = begin(cluster, out, log)
    # Taken before the signal: a cell this small may come to its end meanwhile.
    begun = wait_until(lambda: in_work(out), "for a checkpoint")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(90) == 130, log.read_text()
    assert "of 8 cells are finished; the same command goes on" in log.read_text()
    wait_until(lambda: not cluster.workers(0) + cluster.workers(1), "for the end of all cells")

    start, driver = time.time(), begin(cluster, out, log)
    wait_until(lambda: in_work(out, start) and cluster.workers(1), "for the second node")
    (worker,) = wait_until(lambda: cluster.workers(0), "for the first node")
    begun |= in_work(out)
    start = time.time()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: in_work(out, start) and cluster.workers(1), "for the second node")
    begun |= in_work(out)
    cluster.stop(1)

    # Meanwhile the same here, since a core is free now.
    monkeypatch.setattr(Run, "report", lambda run: run.folder.write(record.REPORT, "not drawn"))
    place: dict[str, Any] = {"device": "cpu", "precision": "fp32", "threads": 1, "quiet": True}
    local = sweep("shapes.demo", AXES, seeds=2, epochs=4, out=tmp_path / "local", **place)

    assert driver.wait(600) == 0, log.read_text()
    words = log.read_text()
    assert "Ray: 2 at a time on 2 nodes, each with 1 core" in words and ": failed" not in words
    # What was begun once was not begun again: it went on from its checkpoint.
    assert begun == {path: (path / RECIPE).stat().st_mtime_ns for path in begun}
    assert cluster.nodes[0].poll() is None, "a cluster that was there before goes on"
    assert len(local.cells) == 8 and {cell.threads for cell in Sweep.open(out).cells} == {1}
    for cell in local.cells:
        here, there = (tmp_path / name / cell.folder / record.MODEL for name in ("local", "cluster"))
        assert here.read_bytes() == there.read_bytes(), cell
