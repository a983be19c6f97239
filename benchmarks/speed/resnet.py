"""A training step of ResNet-18 for small images, beside torch's own in bf16, in turn.

    python -m benchmarks.speed.resnet [--batch-size 128] [--rounds 3] [--steps 8] [--record]

Each measurement is a process of its own (A B A B …). Both sides train on the same augmented random images:
- *stock*: autocast to bf16, channels-last, the modules that torch has, its optimizer. Unlike in reference.py
  its allocator is tuned as Firstlight's is, so the ratio is that of the operations;
- *firstlight*: `train_step` on the machine that `choose` makes.
Medians of all steps but the first three of each process are compared.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.measure import in_own_process, parser, record, seconds_in_turn
from benchmarks.speed.reference import WARM_UP, firstlight, stock

BATCH_SIZES = (128, 512)
LOOPS = ("stock", "firstlight")


def resnet18() -> Any:
    from firstlight.models.resnet import ResNetSpec

    return ResNetSpec(18)(10)


def measure(loop: str, batch_size: int, steps: int) -> list[float]:
    """Take steps in this process, and return the seconds of each."""
    if loop == "stock":
        step, _ = stock("bf16", resnet18, batch_size, tune_memory=True)
    else:
        step, _ = firstlight("bf16", resnet18, batch_size)
    return seconds_in_turn({loop: step}, steps, warm_up=WARM_UP)[loop]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch-size", type=int, action="append", help=f"by default each of {BATCH_SIZES}")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=8, help="of each process")
    arguments = options.parse_args()

    from firstlight.machine.kernels.library import load
    from firstlight.machine.machine import choose

    machine, kernels = choose("cpu", "bf16"), load().words  # compiled now, so that no measurement pays for it
    for batch_size in arguments.batch_size or BATCH_SIZES:
        seconds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
        for _ in range(arguments.rounds):
            for loop in LOOPS:
                plain = {"FIRSTLIGHT_KERNELS": "plain"} if loop == "stock" else {}
                seconds[loop] += in_own_process(measure, loop, batch_size, arguments.steps, **plain)
        theirs, ours = (statistics.median(seconds[loop]) for loop in LOOPS)
        record(
            __file__,
            machine,
            keep=arguments.record,
            batch_size=batch_size,
            images_per_second=round(batch_size / ours, 1),
            baseline="the stock loop in bf16 autocast, channels-last, its allocator tuned",
            baseline_images_per_second=round(batch_size / theirs, 1),
            ratio=round(theirs / ours, 2),
            note=kernels,
        )


if __name__ == "__main__":
    main()
