"""Two one-thread cells at a time on Ray against one two-thread cell after another, and Ray's overhead.

    python -m benchmarks.speed.sweep [--cells 4] [--epochs 4] [--images 8000] [--rounds 3] [--record]

Needs the extra `cluster` and two idle cores. The ways run in turn (A B A B …) on the recipe shapes.demo, and
their medians are compared: above 1, Ray finishes more cells in the same time. The overhead of a cell is
the time of its core beyond the run's own wall clock; that of the first cells holds the start of their
processes and the import of torch, and is said apart.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import parser, record

CORES = 2


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cells", type=int, default=4)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--images", type=int, default=8000, help="of training; 1000 or more")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    # Ray's cells choose their own number; without it the local ones would stay at one thread.
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

    import ray
    import torch

    from firstlight.jobs.cells import Engine, Plan, one_after_another
    from firstlight.jobs.cluster import OnRay
    from firstlight.jobs.progress import silent
    from firstlight.jobs.train import train
    from firstlight.machine.machine import choose
    from firstlight.recipes import resolve
    from firstlight.record.run_folder import RunFolder
    from firstlight.run import Run

    torch.set_num_threads(CORES)
    machine = choose("cpu")
    place: dict[str, Any] = {"device": "cpu", "precision": machine.precision, "quiet": True}

    def seconds(engine: Engine, cells: int, folder: str, **sizes: Any) -> tuple[float, list[float]]:
        """Return the time of all cells, and the wall clock that each run has written down."""
        recipe = resolve("shapes.demo", epochs=arguments.epochs, peak_lr=0.1, min_lr=0.001, **sizes)
        plans = [
            Plan(recipe.replace(seed=seed), Path(folder) / f"seed-{seed}", str(seed)) for seed in range(cells)
        ]
        start = time.perf_counter()
        failures = [failure for _, failure in engine(plans, train, place, silent) if failure]
        elapsed = time.perf_counter() - start
        if failures:
            raise failures[0]
        return elapsed, [Run(RunFolder(plan.path)).summary.wall_seconds or 0.0 for plan in plans]

    def overhead(elapsed: float, walls: Iterable[float]) -> float:
        walls = [*walls]
        return (CORES * elapsed - sum(walls)) / len(walls)

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    engines: dict[str, Engine] = {"ray": OnRay(1, 0), "local": one_after_another}
    elapsed: dict[str, list[float]] = {name: [] for name in engines}
    warm: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cold = overhead(*seconds(engines["ray"], CORES, f"{folder}/cold", train=1000, test=100))
        for number in range(arguments.rounds):
            for name, engine in engines.items():
                total, walls = seconds(
                    engine, arguments.cells, f"{folder}/{name}-{number}", train=arguments.images, test=1000
                )
                elapsed[name].append(total)
                if name == "ray":
                    warm.append(overhead(total, walls))
    ray.shutdown()
    on_ray, local = (statistics.median(elapsed[name]) for name in ("ray", "local"))
    note = (
        f"{arguments.cells} cells: {on_ray:.1f} s on Ray, {CORES} one-thread cells at a time, {local:.1f} s "
        f"one {CORES}-thread cell after another; overhead {statistics.median(warm):.2f} s a cell, "
        f"{cold:.1f} s the first of a process"
    )
    record(
        __file__,
        machine,
        keep=arguments.record,
        ratio=round(local / on_ray, 3),
        overhead_seconds=round(statistics.median(warm), 3),
        first_overhead_seconds=round(cold, 3),
        note=note,
    )


if __name__ == "__main__":
    main()
