"""How fast the chip could be at best: products in registers, and bytes from each cache and from memory.

    python -m benchmarks.speed.roofline

Compiled with the flags of the kernels in use, one loop for each. All threads work at once, each on a part of
its own; of several times the shortest counts. budget.py sets the time of a training step beside these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.measure import parser, record
from firstlight.machine.kernels import library
from firstlight.machine.kernels.library import Kernels, load
from firstlight.machine.machine import choose

KILOBYTES = {"l1": 16, "l2": 384, "l3": 6 * 1024, "memory": 256 * 1024}
"""What a thread reads again and again, so small that the level holds it, and too large for the one before."""
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Roofline:
    """Rates of all threads together: products in registers, GFLOP/s, and reading, GB/s."""

    registers: float
    l1: float
    l2: float
    l3: float
    memory: float


def measure(dtype: torch.dtype) -> Roofline:
    """Measure the chip with the instructions that compiled kernels take for this number format."""
    kernels = load(dtype)
    if not kernels:
        raise SystemExit(kernels.words)
    headers = tuple(name for name in kernels.variant.sources if name.endswith(".h"))
    source = str(Path(__file__).with_suffix(".cpp"))
    loops = replace(kernels, library=library._build(replace(kernels.variant, sources=(*headers, source))))
    return Roofline(registers(loops), **{level: reading(loops, size) for level, size in KILOBYTES.items()})


def registers(loops: Kernels) -> float:
    flop, rounds = torch.zeros((), dtype=torch.int64), 2_000_000
    seconds = shortest(lambda: loops.call("multiply_in_registers", rounds, flop))
    return int(flop) * torch.get_num_threads() / seconds / 1e9


def reading(loops: Kernels, kilobytes: int) -> float:
    threads, size = torch.get_num_threads(), 1024 * kilobytes
    values = torch.ones(threads * size, dtype=torch.uint8)
    rounds = max(1, MOST_BYTES // size)
    seconds = shortest(lambda: loops.call("read_memory", values, size, rounds))
    return threads * size * rounds / seconds / 1e9


def shortest(work: Callable[[], object], times: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(times))


def main() -> None:
    options = parser(__doc__)
    arguments = options.parse_args()
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        kernels = load(dtype)
        if kernels:
            values = {key: round(value, 1) for key, value in asdict(measure(dtype)).items()}
            record(__file__, choose("cpu", precision), keep=arguments.record, **values, note=kernels.words)


if __name__ == "__main__":
    main()
