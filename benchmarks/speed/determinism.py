"""What each level of determinism costs: seconds of a training step of the assignment, in one run.

    python -m benchmarks.speed.determinism [--rounds 5] [--record]

The levels run in turn (A B A B …) and the medians are compared. On a CPU both compute the same.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.measure import assignment_step, parser, record, seconds_in_turn
from firstlight.machine.machine import choose


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    machine = choose(determinism="bits")
    train = assignment_step(machine)

    def step(level: str) -> None:
        torch.use_deterministic_algorithms(level == "bits")
        train()

    levels = {level: lambda level=level: step(level) for level in ("draws", "bits")}
    seconds = seconds_in_turn(levels, arguments.rounds, wait=machine.synchronise)
    draws, bits = (statistics.median(times) for times in seconds.values())
    note = f"a step at level bits ({bits:.3f} s) over one at level draws ({draws:.3f} s)"
    record(__file__, machine, keep=arguments.record, ratio=round(bits / draws, 3), note=note)


if __name__ == "__main__":
    main()
