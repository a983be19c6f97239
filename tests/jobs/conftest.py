"""A run that was left alone, to which stopped ones are compared."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stopped import PROCESSES, finish, outcome


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and the seconds it took."""
    if PROCESSES.get_start_method() == "forkserver":
        PROCESSES.set_forkserver_preload(["stopped", "firstlight.jobs.train"])
    folder = tmp_path_factory.mktemp("whole")
    finish(folder / "warm", folder / "log")  # the server imports torch meanwhile
    start = time.perf_counter()
    finish(folder / "run", folder / "log")
    assert outcome(folder / "run") == outcome(folder / "warm"), "the same seed gives the same bits"
    return folder / "run", time.perf_counter() - start
