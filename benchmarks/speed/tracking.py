"""Do the fast paths learn the same? Losses of 200 steps in fp32 and bf16, by torch's operations and compiled.

    python -m benchmarks.speed.tracking --data-dir DIR [--width 16] [--seeds 3] [--path NAME] [--record]

The same weights, batches and rates of the assignment in each, one process a path. Single losses of two
roundings of the same arithmetic drift apart, as training amplifies every difference; what has to agree is
the course of the loss. Compared with torch in fp32 are the mean over all steps (in fp32 to 1 %) and the means
over 20 steps, of which the one that is furthest off counts (to 3 %). How much of that is chance says the
control: torch's own fp32 with the instructions of an older chip. Ends with code 1 where one is off by more.

`--record` adds a row for each path and keeps the losses beside them. A narrow network takes minutes on one
core where the assignment's takes an hour, and its losses scatter more: take several seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import in_own_process, parser, record
from benchmarks.speed.older_chips import LIMITS

REFERENCE, CONTROL = "fp32, torch", "fp32, torch limited to AVX2"
PATHS: dict[str, tuple[str, dict[str, str], float]] = {
    # precision, variables of the environment, tolerance of the mean over all steps
    REFERENCE: ("fp32", {"FIRSTLIGHT_KERNELS": "plain"}, 0.0),
    CONTROL: ("fp32", {"FIRSTLIGHT_KERNELS": "plain", **LIMITS["avx2"]}, 0.01),
    "fp32, AVX2": ("fp32", {"FIRSTLIGHT_KERNELS": "avx2"}, 0.01),
    "fp32, AVX-512": ("fp32", {"FIRSTLIGHT_KERNELS": "avx512"}, 0.01),
    "bf16, torch": ("bf16", {"FIRSTLIGHT_KERNELS": "plain"}, 0.03),
    "bf16, compiled": ("bf16", {}, 0.03),
}
FURTHEST = 0.03
"""Tolerance of the means over WINDOW steps."""
STEPS, WINDOW, BATCH, WIDTH = 200, 20, 128, 64


def losses(precision: str, data_dir: Path, width: int, seeds: int) -> tuple[list[float], str]:
    """Train in this process; return each step's loss, the mean over seeds, and which kernels were in use."""
    courses = [course(precision, data_dir, width, seed) for seed in range(seeds)]
    values = [sum(step) / seeds for step in zip(*(values for values, _ in courses), strict=True)]
    return values, courses[0][1]


def course(precision: str, data_dir: Path, width: int, seed: int) -> tuple[list[float], str]:
    """Train from one seed; return the loss of each step, and which kernels were in use."""
    from firstlight.jobs.job import Job
    from firstlight.machine.machine import operations_on
    from firstlight.recipes import resolve
    from firstlight.training.loop import train_step
    from firstlight.training.state import TrainState

    recipe = resolve(
        "cifar10.assignment", batch_size=BATCH, peak_lr=0.1, min_lr=0.004, width=width, seed=seed
    )
    job = Job.prepare(recipe, data_dir, "cpu", precision)
    state = TrainState.create(job.model, recipe.optimizer, job.machine)
    state.model.train()
    # The rise of the rate, which takes five epochs, within these steps: where training is most easily upset.
    values = []
    for images, labels in job.batches.epoch(0):
        lr = 0.004 + (0.1 - 0.004) * state.step / STEPS
        values.append(float(train_step(state, images, labels, lr, recipe.objective, job.machine)))
        if state.step == STEPS:
            return values, operations_on(job.machine)
    raise SystemExit(f"an epoch has only {state.step} steps")


def windows(values: list[float]) -> list[float]:
    return [sum(values[start : start + WINDOW]) / WINDOW for start in range(0, len(values), WINDOW)]


def furthest(values: list[float], reference: list[float]) -> float:
    """Return by how much, as a share, the means over WINDOW steps differ at most."""
    return max(abs(a / b - 1) for a, b in zip(windows(values), windows(reference), strict=True))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True)
    options.add_argument("--width", type=int, default=WIDTH, help="of the network; the assignment's is 64")
    options.add_argument("--path", choices=list(PATHS)[1:], action="append", help="by default all")
    options.add_argument("--seeds", type=int, default=1, help="whose losses are averaged")
    arguments = options.parse_args()

    from firstlight.machine.machine import choose

    results: dict[str, list[float]] = {}
    failed = []
    for path in (REFERENCE, *(arguments.path or list(PATHS)[1:])):
        precision, variables, tolerance = PATHS[path]
        work = (losses, precision, arguments.data_dir, arguments.width, arguments.seeds)
        results[path], words = in_own_process(*work, **variables)
        mean = sum(results[path]) / sum(results[REFERENCE]) - 1
        off = furthest(results[path], results[REFERENCE])
        if abs(mean) > tolerance or off > FURTHEST:
            failed.append(f"{path} is off by {mean:.2%}, or {off:.2%} over {WINDOW} steps")
        if path != REFERENCE:
            row = {"operations": path, "width": arguments.width, "seeds": arguments.seeds, "steps": STEPS}
            row |= {"batch_size": BATCH, "mean": round(mean, 5), "tolerance": tolerance, "window": WINDOW}
            row |= {"furthest": round(off, 5), "note": words}
            record(__file__, choose("cpu", precision), keep=arguments.record, **row)
    if arguments.record:
        stem = "tracking" if arguments.width == WIDTH else f"tracking_width{arguments.width}"
        text = json.dumps({"batch_size": BATCH, "window": WINDOW, "losses": results}) + "\n"
        Path(__file__).with_name(f"{stem}.json").write_text(text, encoding="utf-8")
    if failed:
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    main()
