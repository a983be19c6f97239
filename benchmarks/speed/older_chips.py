"""The assignment's step in fp32 as on an older chip: the compiled kernels beside the stock loop, in turn.

    python -m benchmarks.speed.older_chips [--isa avx2] [--rounds 3] [--steps 5] [--record]

Both sides are limited alike, by ATEN_CPU_CAPABILITY for torch's own operations and the compiled ones, and by
ONEDNN_MAX_CPU_ISA for torch's convolutions. This machine then stands for an older one: the instructions are
those, the caches and the clock are its own. Each measurement is a process of its own; the stock loop has the
default allocator, as in reference.py.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.measure import in_own_process, parser, record
from benchmarks.speed.reference import BATCH, LOOPS, measure

LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


def words(_: str) -> str:
    """Return which kernels serve fp32 in this process."""
    import torch

    from firstlight.machine.kernels.library import load

    return load(torch.float32).words


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--isa", choices=list(LIMITS), action="append", help="by default both")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=5, help="of each process")
    arguments = options.parse_args()

    from firstlight.machine.machine import choose

    machine = choose("cpu", "fp32")
    for isa in arguments.isa or LIMITS:
        seconds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
        kernels = {"stock": "plain", "firstlight": isa}
        note = in_own_process(words, isa, **LIMITS[isa], FIRSTLIGHT_KERNELS=isa)  # compiled now
        for _ in range(arguments.rounds):
            for loop in LOOPS:
                limits = {**LIMITS[isa], "FIRSTLIGHT_KERNELS": kernels[loop]}
                started = time.time()
                result = in_own_process(measure, loop, arguments.steps + 2, started, "fp32", **limits)
                seconds[loop] += result["step_seconds"]
        stock, ours = (statistics.median(seconds[loop]) for loop in LOOPS)
        record(
            __file__,
            machine,
            keep=arguments.record,
            isa=isa,
            images_per_second=round(BATCH / ours, 1),
            baseline="the stock loop in fp32, channels-last, under the same limits",
            baseline_images_per_second=round(BATCH / stock, 1),
            ratio=round(stock / ours, 2),
            note=note,
        )


if __name__ == "__main__":
    main()
