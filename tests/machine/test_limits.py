"""Limits of control groups, read from files that look like those of Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from firstlight.machine import limits, machine
from firstlight.machine.limits import Limits


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Make a file system in which a process is in these groups."""
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


TOP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("0::/\n", {f"{TOP}/cpu.max": "150000 100000\n", f"{TOP}/memory.max": "1073741824\n"}, 1.5, 2**30),
        ("0::/\n", {f"{TOP}/cpu.max": "max 100000\n", f"{TOP}/memory.max": "max\n"}, None, None),
        # The tightest of a group and those above it counts.
        (
            "0::/a/b\n",
            {f"{TOP}/a/cpu.max": "50000 100000", f"{TOP}/a/b/cpu.max": "200000 100000"},
            0.5,
            None,
        ),
        # Inside a container, the path is that of the host and is not there.
        ("0::/docker/4f2\n", {f"{TOP}/cpu.max": "100000 100000"}, 1.0, None),
        ("0::/../../x\n", {f"{TOP}/cpu.max": "100000 100000"}, 1.0, None),
        (
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            {
                f"{TOP}/cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n",
                f"{TOP}/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
                f"{TOP}/memory/a/memory.limit_in_bytes": "536870912\n",
            },
            2.0,
            2**29,
        ),
        (
            "4:memory:/\n3:cpu:/\n",
            {
                f"{TOP}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{TOP}/cpu/cpu.cfs_period_us": "100000\n",
                f"{TOP}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
            None,
        ),
        ("nonsense\n::\n", {f"{TOP}/cpu.max": "no number\n", f"{TOP}/memory.max": "-5"}, None, None),
        ("0::/\n", {f"{TOP}/cpu.max": "100000 0\n"}, None, None),
        ("0::/\n", {f"{TOP}/cpu.max": ""}, None, None),
    ],
)
def test_quota_and_memory_of_a_control_group_are_read(
    tmp_path: Path, groups: str, files: dict[str, str], cores: float | None, memory: int | None
) -> None:
    root = system(tmp_path, groups, files)
    assert limits.limits(root) == Limits(cores, memory)
    machine_memory = limits.usable_memory(tmp_path / "nothing")
    assert limits.usable_memory(root) == min(machine_memory, memory or machine_memory)


@pytest.mark.parametrize(("quota", "threads"), [(20_000, 1), (100_000, 1), (150_000, 2), (240_000, 2)])
def test_a_quota_sets_the_number_of_cores_that_are_worth_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, threads: int
) -> None:
    monkeypatch.setattr(limits, "allowed_cores", lambda: 8)
    root = system(tmp_path, "0::/\n", {f"{TOP}/cpu.max": f"{quota} 100000"})
    assert limits.usable_cores(root) == threads
    assert limits.quota_words(root) == f"a quota of {quota / 1e5:.3g} of 8 cores"
    assert limits.quota_words(tmp_path / "none") == ""


def test_torch_uses_no_more_threads_than_a_quota_is_worth_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "quota_words", lambda: "a quota of 1 of 2 cores")
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        machine.fit_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert machine.choose("cpu", "fp32").threads == 1
    finally:
        torch.set_num_threads(before)
