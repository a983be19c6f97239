"""What the tests of stopped runs share: small runs in processes of their own, and their outcome."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from firstlight.jobs.train import train
from firstlight.record import record
from firstlight.record.checkpoints import CHECKPOINTS
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.run import Run

# A server that has imported torch once; its children start at once, and in a clean state.
PROCESSES = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else None)
SMALL: dict[str, Any] = {
    **{"train": 240, "test": 60, "width": 2, "batch_size": 20, "epochs": 3, "peak_lr": 0.05},
    **{"min_lr": 0.001, "device": "cpu", "precision": "fp32", "average_decay": 0.9},
    **{"validation": 40, "best_on_validation": True, "checkpoint_minutes": 0.0},
}


def quick_report(run: Run) -> None:
    """Write as many bytes as the pictures and the page have; drawing takes longer than these runs."""
    for name in [f"{record.FIGURES}/{number}.png" for number in range(5)]:
        run.folder.write(name, b"\x89" * 100_000)
    run.folder.write(record.REPORT, "-" * 500_000)


def work(log: str, settings: dict[str, Any]) -> None:
    """Train in a process of its own, with what it prints in a file."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        Run.report = quick_report  # type: ignore[method-assign, assignment]
        train("shapes.demo", **settings)


def start(out: Path, log: Path, **settings: Any) -> multiprocessing.process.BaseProcess:
    process = PROCESSES.Process(target=work, args=(str(log), {**SMALL, "out": str(out), **settings}))
    process.start()
    return process


def finish(out: Path, log: Path, **settings: Any) -> str:
    """Train to the end, and return what was printed."""
    process = start(out, log, **settings)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on whether a run was stopped: everything but its clock."""
    rows = [json.loads(line) for line in (folder / record.HISTORY).read_text().splitlines()]
    for row in rows:
        del row["images_per_second"], row["train_seconds"]
    files = (record.MODEL, record.PREDICTIONS, record.PICTURES, record.MISTAKES, RECIPE)
    return {"history": rows, **{name: (folder / name).read_bytes() for name in files}}


def assert_readable(folder: Path) -> None:
    """Whatever a killed run left behind must open."""
    if (folder / RECIPE).exists():
        run = Run(RunFolder.open(folder))
        assert run.recipe.name == "shapes.demo" and run.data.shape == (3, 32, 32)
        assert len(run.history) <= 3 and run.summary.to_json()


def newest_step(folder: Path) -> int | None:
    return max(
        (int(path.name[5:13]) for path in (folder / CHECKPOINTS).glob("step-*.safetensors")), default=None
    )
