"""The limits that a container or a service manager sets for a process: processor time and memory.

Read from the control groups of Linux, version 2 and version 1; elsewhere there are none.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import InputError, printable

_UNLIMITED = 2**60
"""Bytes from which on version 1 means that there is no limit."""


@dataclass(frozen=True)
class Limits:
    """What the control groups of this process allow it. cores: of processor time; memory: bytes; or None."""

    cores: float | None = None
    memory: int | None = None


def limits(root: Path = Path("/")) -> Limits:
    """Return the tightest limits of the control groups that this process is in, and of those above them.

    root: of the file system, another one in tests.
    """
    cores: list[float] = []
    memory: list[int] = []
    for folder in _groups(root, ""):
        cores += _quota(*_words(folder / "cpu.max", 2))
        memory += _size(*_words(folder / "memory.max", 1))
    for folder in _groups(root, "cpu"):
        cores += _quota(*_words(folder / "cpu.cfs_quota_us", 1), *_words(folder / "cpu.cfs_period_us", 1))
    for folder in _groups(root, "memory"):
        memory += _size(*_words(folder / "memory.limit_in_bytes", 1))
    return Limits(min(cores, default=None), min(memory, default=None))


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that are worth a thread: those allowed, or a quota, rounded, at least 1."""
    quota = limits(root).cores
    cores = allowed_cores()
    return cores if quota is None else max(1, min(cores, math.floor(quota + 0.5)))


def allowed_cores() -> int:
    """Return the number of cores that this process may run on, whatever its quota."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_words(root: Path = Path("/")) -> str:
    """Name a quota that is smaller than the cores that this process may run on; empty where there is none."""
    quota, cores = limits(root).cores, allowed_cores()
    return "" if quota is None or quota >= cores else f"a quota of {quota:.3g} of {cores} cores"


def usable_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or a smaller limit.

    FIRSTLIGHT_MEMORY, such as 800M or 16G, is a limit too. Raises InputError where it is no size.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = 8 * 2**30  # where a system does not say
    limit = limits(root).memory
    return min(number for number in (machine, limit, _asked()) if number is not None)


def _asked() -> int | None:
    text = os.environ.get("FIRSTLIGHT_MEMORY", "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)B?", text, re.IGNORECASE | re.ASCII)
    size = 0 if match is None else int(match[1]) * 2 ** (10 * " KMGT".index(match[2].upper() or " "))
    if not size:
        raise InputError(f"FIRSTLIGHT_MEMORY is no size: {printable(text)}", "For example 800M or 16G.")
    return size


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it; controller: "" is version 2."""
    top = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
            _, controllers, group = [*line.split(":", 2), "", ""][:3]
            if controller not in controllers.split(","):
                continue
            # Version 1 mounts each controller at a folder of its own; hybrids mount version 2 at `unified`.
            mounts = (top, top / "unified") if not controller else (top / controllers, top / controller)
            for mount in mounts:
                # Inside a container the path is often that of the host, and its mount is the group itself.
                parts = [part for part in group.split("/") if part not in ("", "..")]
                yield from (mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1))


def _words(path: Path, count: int) -> list[str]:
    """Return the first words of a file of a control group, "" for those that are not there."""
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = path.read_text("ascii", "replace").split()
    return [*words, *[""] * count][:count]


def _quota(quota: str, period: str) -> list[float]:
    if quota.isdecimal() and period.isdecimal() and int(quota[:18]) and int(period[:18]):
        return [int(quota[:18]) / int(period[:18])]
    return []  # "max", -1, or nothing


def _size(limit: str) -> list[int]:
    return [int(limit)] if limit.isdecimal() and len(limit) < 20 and 0 < int(limit) < _UNLIMITED else []
