"""`firstlight doctor`: is the installation sound, what does the machine do, is a resumed run the same run?

It imports torch only after it has looked at what is installed, so that it can speak of a broken one.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from firstlight import __version__
from firstlight.errors import InputError

NEEDED_GB = 1.0
"""Free disk that a run of the assignment asks for: 24 snapshots, two checkpoints and the data's cache."""

_TINY = ["train=200", "test=50", "width=2", "batch_size=20", "peak_lr=0.05", "min_lr=0.001"]
_MODULES = {"pillow": "PIL"}


@dataclass(frozen=True)
class Check:
    """One line of the table. good: None where it is worth knowing but nothing to mend."""

    name: str
    good: bool | None
    result: str
    hint: str = ""

    @property
    def mark(self) -> str:
        return {True: "✓", False: "✗", None: "·"}[self.good]


def examine(data_dir: Path | None = None, out: Path = Path()) -> Iterator[Check]:
    """Yield one check after another; a failed one says what to do, and never ends the rest.

    data_dir: where CIFAR-10 should be; out: where run folders would be made.
    """
    versions = f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield Check("firstlight", None, versions)
    packages = list(_installation())
    yield from packages
    yield _disk(out)
    if any(package.good is False for package in packages):
        yield Check("machine", False, "not examined, because the installation is broken", "Mend it first.")
        return
    yield from _guarded("machine", _machine)
    yield from _guarded("data", lambda: _data(data_dir))
    yield from _guarded("resume", _resume)


def _guarded(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield check()
    except InputError as error:
        yield Check(name, False, error.message, error.hint)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        yield Check(name, False, _first_line(error), "See `firstlight doctor --debug`.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _installation() -> Iterator[Check]:
    """Compare each core dependency with the floor that the package itself states, and import it."""
    for requirement in metadata.requires("firstlight") or []:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement.split(";")[0].replace(" ", ""))
        if match is not None and "extra" not in requirement:
            yield _package(*match.groups())


def _package(name: str, floor: str) -> Check:
    hint = f"pip install '{name}>={floor}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", hint)
    if _numbers(version) < _numbers(floor):
        return Check(name, False, f"{version}, but {floor} or newer is needed", hint)
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:  # whatever a broken package raises, it is what the user needs to read
        hint = f"pip install --force-reinstall {name}"
        return Check(name, False, f"{version} does not import: {_first_line(error)}", hint)
    return Check(name, True, version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]


def _disk(out: Path) -> Check:
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    room = f"{free:.1f} GB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written to", "Run in another folder, or use --out.")
    if free < NEEDED_GB:
        return Check("disk", False, f"{room}; a long run needs {NEEDED_GB:g} GB", "Make room, or use --out.")
    return Check("disk", True, room)


def _machine() -> Check:
    from firstlight.machine.limits import quota_words, usable_memory
    from firstlight.machine.machine import choose, operations_on
    from firstlight.training.graph import steps_on

    machine = choose()
    words = [
        f"{machine.hardware}; {machine.device.type}, {machine.precision}, channels-last, "
        f"{machine.threads} threads, allocator: {machine.allocator}",
        *([quota] if (quota := quota_words()) else []),
        f"{usable_memory() / 2**30:.3g} GB of memory may be used",
        operations_on(machine),
        f"steps {steps_on(machine)}",
    ]
    return Check("machine", True, "; ".join(words))


def _data(data_dir: Path | None) -> Check:
    from firstlight.data.cifar10 import Cifar10, is_here
    from firstlight.machine.storage import cache_folder

    if data_dir is None and not is_here():
        words = f"no CIFAR-10 in {cache_folder()}; `train` downloads it, `shapes` is built in"
        return Check("data", None, words)
    train, test = Cifar10().load(data_dir)
    return Check("data", True, f"CIFAR-10, {len(train):,} + {len(test):,} images, verified")


def _resume() -> Check:
    """Kill a tiny run, resume it, and compare its bits with those of a run that was left alone."""
    with tempfile.TemporaryDirectory(prefix="firstlight-doctor-", ignore_cleanup_errors=True) as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _run(whole, [])
        step = _kill_within(killed)
        _run(killed, ["--resume"])
        files = ("model.safetensors", "predictions.safetensors")
        same = all((whole / name).read_bytes() == (killed / name).read_bytes() for name in files)
    words = f"killed at step {step} and resumed, a run ended with {'the same' if same else 'other'} bits"
    return Check("resume", same, words, "" if same else "Please report it.")


def _command(out: Path, more: list[str]) -> list[str]:
    words = "-m firstlight train shapes.demo --epochs 3 --checkpoint-minutes 0 --device cpu --precision fp32"
    settings = [word for setting in _TINY for word in ("--set", setting)]
    return [sys.executable, *words.split(), "--out", str(out), *settings, *more]


def _run(out: Path, more: list[str]) -> None:
    done = subprocess.run(_command(out, more), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the tiny run failed"])[0])


def _kill_within(out: Path) -> int:
    """Start a tiny run, kill it at its first checkpoint, and return that checkpoint's step."""
    kill = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows knows no SIGKILL
    with subprocess.Popen(_command(out, []), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            steps = [int(path.name.split("-")[1].split(".")[0]) for path in out.glob("checkpoints/step-*")]
            if steps:
                process.send_signal(kill)
                return max(steps)
            time.sleep(0.002)
    raise RuntimeError("the tiny run ended before it could be killed")


def table(checks: list[Check]) -> str:
    """Write checks as a Markdown table, to be pasted into a report of a bug."""
    width = max(len(check.name) for check in checks)
    lines = [f"|   | {'check':{width}} | result |", f"|---|{'-' * (width + 2)}|---|"]
    for check in checks:
        hint = f" → {check.hint}" if check.hint else ""
        lines.append(f"| {check.mark} | {check.name:{width}} | {check.result}{hint} |")
    return "\n".join(lines)
