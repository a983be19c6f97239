"""Do the fast paths learn the same? Losses of 200 steps in fp32 and bf16, by torch's operations and compiled.

    python -m benchmarks.speed.tracking --data-dir DIR [--width 16] [--path "fp32, AVX2"] [--record]

The same weights, batches and rates of the assignment in each, one process a path. Single losses of two
roundings of the same arithmetic drift apart, as training amplifies every difference; what has to agree is
the course of the loss, so means over 20 steps are compared with those of torch in fp32. Ends with code 1
where one of them is off by more than its tolerance. `--record` adds a row for each path and keeps the losses
beside them. A narrow network takes minutes on one core where the assignment's takes an hour.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import in_own_process, parser, record

REFERENCE = "fp32, torch"
PATHS = {
    # precision, FIRSTLIGHT_KERNELS, tolerance
    REFERENCE: ("fp32", "plain", 0.0),
    "fp32, AVX2": ("fp32", "avx2", 0.01),
    "fp32, AVX-512": ("fp32", "avx512", 0.01),
    "bf16, torch": ("bf16", "plain", 0.03),
    "bf16, compiled": ("bf16", "", 0.03),
}
STEPS, WINDOW, BATCH, WIDTH = 200, 20, 128, 64


def losses(precision: str, data_dir: Path, width: int) -> tuple[list[float], str]:
    """Train in this process; return the loss of each step, and which kernels were in use."""
    from firstlight.jobs.job import Job
    from firstlight.machine.machine import operations_on
    from firstlight.recipes import resolve
    from firstlight.training.loop import train_step
    from firstlight.training.state import TrainState

    recipe = resolve("cifar10.assignment", batch_size=BATCH, peak_lr=0.1, min_lr=0.004, width=width)
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
    arguments = options.parse_args()

    from firstlight.machine.machine import choose

    results: dict[str, list[float]] = {}
    failed = []
    for path in (REFERENCE, *(arguments.path or list(PATHS)[1:])):
        precision, kernels, tolerance = PATHS[path]
        work = (losses, precision, arguments.data_dir, arguments.width)
        results[path], words = in_own_process(*work, FIRSTLIGHT_KERNELS=kernels)
        off = furthest(results[path], results[REFERENCE])
        if off > tolerance:
            failed.append(f"{path} is off by {off:.2%}, more than {tolerance:.0%}")
        if path != REFERENCE:
            row = {"path": path, "width": arguments.width, "batch_size": BATCH, "steps": STEPS}
            row |= {"window": WINDOW, "furthest": round(off, 5), "tolerance": tolerance, "note": words}
            record(__file__, choose("cpu", precision), keep=arguments.record, **row)
    if arguments.record:
        stem = "tracking" if arguments.width == WIDTH else f"tracking_width{arguments.width}"
        text = json.dumps({"batch_size": BATCH, "window": WINDOW, "losses": results}) + "\n"
        Path(__file__).with_name(f"{stem}.json").write_text(text, encoding="utf-8")
    if failed:
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    main()
