"""Do the fast paths learn the same? Losses of 200 steps in fp32, in torch's bf16, and compiled.

    python benchmarks/tracking.py --data-dir DIR [--steps 200] [--batch-size 128] [--record]

The same weights, batches and rates of the assignment in each, one process a path. Single losses of two
roundings of the same arithmetic drift apart, as training amplifies every difference; what has to agree is
the course of the loss, so means over 20 steps are compared with those of fp32. Ends with code 1 where one
of them is off by more than the tolerance.
`--record` keeps the losses in losses.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PATHS = {
    "fp32": ("fp32", "plain"),
    "bf16, torch": ("bf16", "plain"),
    "bf16, compiled": ("bf16", ""),
}
WINDOW = 20
TOLERANCE = 0.03
RESULT = Path(__file__).with_name("losses.json")


def losses(precision: str, data_dir: Path, steps: int, batch_size: int) -> list[float]:
    """Train in this process, and return the loss of each step."""
    from firstlight.jobs.job import Job, resolve
    from firstlight.training.loop import TrainState, train_step

    recipe = resolve("cifar10.assignment", batch_size=batch_size, peak_lr=0.1, min_lr=0.004)
    job = Job.prepare(recipe, data_dir, "cpu", precision)
    state = TrainState.create(job.model, recipe.optimizer, job.machine)
    state.model.train()
    # The rise of the rate, which takes five epochs, within these steps: where training is most easily upset.
    found = []
    for images, labels in job.batches.epoch(0):
        lr = 0.004 + (0.1 - 0.004) * state.step / steps
        found.append(float(train_step(state, images, labels, lr, job.objective, job.machine)))
        if state.step == steps:
            return found
    raise SystemExit(f"an epoch has only {state.step} steps")


def windows(values: list[float]) -> list[float]:
    return [sum(values[at : at + WINDOW]) / WINDOW for at in range(0, len(values), WINDOW)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--record", action="store_true", help="keep the losses in losses.json")
    parser.add_argument("--measure", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps - arguments.steps % WINDOW
    if arguments.measure:
        print(json.dumps(losses(arguments.measure, arguments.data_dir, steps, arguments.batch_size)))
        return
    found: dict[str, list[float]] = {}
    for name, (precision, kernels) in PATHS.items():
        words = [
            "--data-dir",
            str(arguments.data_dir),
            "--steps",
            str(steps),
            "--batch-size",
            str(arguments.batch_size),
        ]
        done = subprocess.run(
            [sys.executable, __file__, "--measure", precision, *words],
            env={**os.environ, "FIRSTLIGHT_KERNELS": kernels},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
    means = {name: windows(values) for name, values in found.items()}
    print(f"| steps | {' | '.join(PATHS)} |\n|---|{'---|' * len(PATHS)}")
    for place in range(steps // WINDOW):
        cells = [f"{means[name][place]:.4f}" for name in PATHS]
        print(f"| {place * WINDOW + 1}–{(place + 1) * WINDOW} | {' | '.join(cells)} |")
    off: dict[str, Any] = {
        name: max(abs(mine / plain - 1) for mine, plain in zip(means[name], means["fp32"], strict=True))
        for name in PATHS
    }
    print("\nfurthest from fp32: " + "; ".join(f"{name} {off[name]:.2%}" for name in list(PATHS)[1:]))
    if arguments.record:
        kept = {
            "batch_size": arguments.batch_size,
            "tolerance": TOLERANCE,
            "window": WINDOW,
            "off": off,
            "losses": found,
        }
        RESULT.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    if max(off.values()) > TOLERANCE:
        sys.exit(f"off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
