"""What each level of determinism costs: seconds of a training step of the assignment, in one run.

    python benchmarks/determinism.py [--record]

The levels run in turn (A B A B …) and the medians are compared. On a CPU both compute the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime

import torch
from rows import add_row

from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded, stream
from firstlight.recipes import named
from firstlight.training.loop import TrainState, train_step
from firstlight.training.objective import Objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append a row to results.csv")
    arguments = parser.parse_args()

    recipe = named("cifar10.assignment")
    machine = choose(determinism="bits")
    with seeded(0, "weights"):
        state = TrainState.create(recipe.model(10), recipe.optimizer, machine)
    images = torch.rand(recipe.batch_size, 3, 32, 32, generator=stream(0, "images"))
    images = images.to(machine.device, machine.dtype, memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=machine.device) % 10
    seconds: dict[str, list[float]] = {"draws": [], "bits": []}
    for number in range(arguments.rounds + 1):
        for level in seconds:
            torch.use_deterministic_algorithms(level == "bits")
            machine.synchronise()
            start = time.perf_counter()
            train_step(state, images, labels, 0.01, Objective(), machine)
            machine.synchronise()
            if number:  # the first round warms up
                seconds[level].append(time.perf_counter() - start)
    draws, bits = (statistics.median(seconds[level]) for level in ("draws", "bits"))
    print(f"on {machine.hardware}, {machine.device.type}, {machine.precision}, torch {torch.__version__}")
    print(f"draws {draws:.3f} s, bits {bits:.3f} s a step: ratio {bits / draws:.3f}")
    if arguments.record:
        add_row(
            {
                "script": "benchmarks/determinism.py",
                "date": datetime.now(UTC).date().isoformat(),
                "hardware": machine.hardware,
                "torch": torch.__version__,
                "device": machine.device.type,
                "precision": machine.precision,
                "threads": machine.threads,
                "ratio": round(bits / draws, 3),
                "note": "a step at level bits over one at level draws",
            }
        )


if __name__ == "__main__":
    main()
