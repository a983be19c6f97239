"""What each level of determinism costs: seconds of a training step of the assignment, in one run.

    python -m benchmarks.speed.determinism [--rounds 5] [--record]

The levels run in turn (A B A B …) and the medians are compared. On a CPU both compute the same.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.measure import parser, random_images, record, seconds_in_turn
from firstlight.data.batches import Batches
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.recipes import named
from firstlight.training.loop import train_step
from firstlight.training.objective import Objective
from firstlight.training.state import TrainState


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()

    recipe, machine = named("cifar10.assignment"), choose(determinism="bits")
    with seeded(0, "weights"):
        state = TrainState.create(recipe.model(10), recipe.optimizer, machine)
    size = recipe.batch_size
    batch = next(Batches(random_images(size), size, recipe.augment, seed=0, machine=machine).epoch(0))

    def step(level: str) -> None:
        torch.use_deterministic_algorithms(level == "bits")
        train_step(state, *batch, 0.01, Objective(), machine)

    levels = {level: lambda level=level: step(level) for level in ("draws", "bits")}
    seconds = seconds_in_turn(levels, arguments.rounds, wait=machine.synchronise)
    draws, bits = (statistics.median(times) for times in seconds.values())
    print(f"on {machine.hardware}, {machine.device.type}, {machine.precision}, torch {torch.__version__}")
    print(f"draws {draws:.3f} s, bits {bits:.3f} s a step: ratio {bits / draws:.3f}")
    if arguments.record:
        note = "a step at level bits over one at level draws"
        record(__file__, machine, ratio=round(bits / draws, 3), note=note)


if __name__ == "__main__":
    main()
