"""What the tests of the benchmarks share: a run on `shapes` that has learned a little, and rows in a list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from firstlight.jobs.train import train
from firstlight.machine.machine import Machine


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmarks") / "run"
    size = {"train": 200, "test": 120, "width": 2, "batch_size": 20}
    where = {"device": "cpu", "precision": "fp32"}
    train("shapes.demo", out=out, epochs=2, peak_lr=0.1, min_lr=0.001, quiet=True, **size, **where)
    return out


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], list[dict[str, Any]]]:
    """A function that gives the list to which a script records from then on, instead of its CSV."""

    def redirect(module: ModuleType) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []

        def record(script: str, machine: Machine, *, keep: bool = True, **values: Any) -> None:
            rows.extend([values] * keep)

        monkeypatch.setattr(module, "record", record)
        return rows

    return redirect
