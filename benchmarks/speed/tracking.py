"""Do the fast paths learn the same? Losses of 200 steps in fp32, in torch's bf16, and compiled.

    python -m benchmarks.speed.tracking --data-dir DIR [--record]

The same weights, batches and rates of the assignment in each, one process a path. Single losses of two
roundings of the same arithmetic drift apart, as training amplifies every difference; what has to agree is
the course of the loss, so means over 20 steps are compared with those of fp32. Ends with code 1 where one
of them is off by more than the tolerance. `--record` keeps the losses in tracking.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import in_own_process, parser

PATHS = {
    # precision, FIRSTLIGHT_KERNELS
    "fp32": ("fp32", "plain"),
    "bf16, torch": ("bf16", "plain"),
    "bf16, compiled": ("bf16", ""),
}
STEPS, WINDOW, BATCH = 200, 20, 128
TOLERANCE = 0.03


def losses(precision: str, data_dir: Path) -> list[float]:
    """Train in this process, and return the loss of each step."""
    from firstlight.jobs.job import Job
    from firstlight.recipes import resolve
    from firstlight.training.loop import train_step
    from firstlight.training.state import TrainState

    recipe = resolve("cifar10.assignment", batch_size=BATCH, peak_lr=0.1, min_lr=0.004)
    job = Job.prepare(recipe, data_dir, "cpu", precision)
    state = TrainState.create(job.model, recipe.optimizer, job.machine)
    state.model.train()
    # The rise of the rate, which takes five epochs, within these steps: where training is most easily upset.
    values = []
    for images, labels in job.batches.epoch(0):
        lr = 0.004 + (0.1 - 0.004) * state.step / STEPS
        values.append(float(train_step(state, images, labels, lr, recipe.objective, job.machine)))
        if state.step == STEPS:
            return values
    raise SystemExit(f"an epoch has only {state.step} steps")


def windows(values: list[float]) -> list[float]:
    return [sum(values[start : start + WINDOW]) / WINDOW for start in range(0, len(values), WINDOW)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True)
    arguments = options.parse_args()
    results: dict[str, list[float]] = {
        name: in_own_process(losses, precision, arguments.data_dir, FIRSTLIGHT_KERNELS=kernels)
        for name, (precision, kernels) in PATHS.items()
    }
    means = {name: windows(values) for name, values in results.items()}
    plain = means["fp32"]
    off = {name: max(abs(a / b - 1) for a, b in zip(means[name], plain, strict=True)) for name in PATHS}
    print("furthest from fp32: " + "; ".join(f"{name} {off[name]:.2%}" for name in list(PATHS)[1:]))
    if arguments.record:
        kept = {"batch_size": BATCH, "tolerance": TOLERANCE, "window": WINDOW}
        text = json.dumps({**kept, "off": off, "losses": results}) + "\n"
        Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    if max(off.values()) > TOLERANCE:
        sys.exit(f"off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
