"""What the tables of hostile inputs share: the peak of memory, and a verb run in this process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.cli import main

MOST_PEAK_MB = 400
"""Memory that a hostile input may cost above what the process held before."""


def _memory_mb(key: str) -> float:
    with contextlib.suppress(OSError):
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


@contextlib.contextmanager
def bounded(record_property: object) -> Iterator[None]:
    """Record the peak of memory inside the `with`, and hold it to the bound, where Linux tells it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory_mb("VmRSS")
    yield
    peak = _memory_mb("VmHWM") - before
    record_property("peak_mb", round(peak, 1))  # type: ignore[operator]
    assert peak < MOST_PEAK_MB


def shell(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a verb; return its exit code, its output, and what it printed of errors."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def assert_one_line(code: int, error: str) -> None:
    """A refusal is one line that says what is wrong, and at most one that says what to do."""
    assert code == 2, error
    lines = error.splitlines()
    assert 1 <= len(lines) <= 2 and lines[0].startswith("firstlight: "), error
    assert "Traceback" not in error and error.replace("\n", "").isprintable()
