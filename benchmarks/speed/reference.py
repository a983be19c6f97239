"""The yardstick R: what PyTorch's stock loop needs for 50,000 images here, in turn with Firstlight's.

    python -m benchmarks.speed.reference [--rounds 3] [--steps 8] [--record]

Each measurement is a process of its own (A B A B …), so that neither inherits the other's memory settings.
Both train the assignment's network in batches of 512 on the same augmented random images:
- *stock*: autocast to bf16, channels-last, the modules that torch has, its optimizer, the default allocator;
- *firstlight*: `train_step` on the machine that `choose` makes.
Medians of all steps but the first three of each process are compared. Also of both: the time that
`import torch` and `import firstlight` take (the latter loads torch when it is needed), from the start of the
process to the end of its first step, and peak memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.measure import in_own_process, parser, random_images, record, seconds_in_turn

EPOCH = 50_000
BATCH = 512
STEPS = 24 * (EPOCH // BATCH)
"""Steps of the assignment: 24 epochs, of which each drops its last short batch."""
WARM_UP = 3
UNITS = ("step_seconds", "import_seconds", "first_step_seconds", "peak_gigabytes")


def assignment() -> Any:
    """Build the assignment's network."""
    from firstlight.models.custom_resnet import CustomResNet

    return CustomResNet(10, bias=False, logit_scale=0.125)


def stock(
    precision: str = "bf16",
    network: Callable[[], Any] = assignment,
    batch_size: int = BATCH,
    *,
    tune_memory: bool = False,
) -> tuple[Callable[[], object], float]:
    """Return a step of the stock loop, and the seconds that its imports took."""
    start = time.perf_counter()
    import torch
    from torch.nn import functional as F

    import_seconds = time.perf_counter() - start
    from firstlight.machine.machine import choose

    machine = choose("cpu", precision, tune_memory=tune_memory)
    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = batches_without_end(machine, batch_size)

    def step() -> object:
        pixels, labels = next(batches)
        with machine.autocast():
            loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, import_seconds


def firstlight(
    precision: str = "bf16", network: Callable[[], Any] = assignment, batch_size: int = BATCH
) -> tuple[Callable[[], object], float]:
    """Return a step of Firstlight's loop, and the seconds that its imports took."""
    start = time.perf_counter()
    import firstlight  # noqa: F401

    import_seconds = time.perf_counter() - start
    from firstlight.machine.machine import choose
    from firstlight.training.loop import train_step
    from firstlight.training.objective import Objective
    from firstlight.training.optimizers import SGD
    from firstlight.training.state import TrainState

    machine = choose("cpu", precision)
    state = TrainState.create(network(), SGD(), machine)
    batches = batches_without_end(machine, batch_size)
    return lambda: train_step(state, *next(batches), 0.05, Objective(), machine), import_seconds


LOOPS = {"stock": stock, "firstlight": firstlight}


def batches_without_end(machine: Any, batch_size: int = BATCH) -> Iterator[Any]:
    """Yield batches of random images, augmented as the assignment's are."""
    from firstlight.data.batches import Batches
    from firstlight.recipes import named

    augment = named("cifar10.assignment").augment
    batches = Batches(random_images(8 * batch_size), batch_size, augment, seed=0, machine=machine)
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def measure(loop: str, steps: int, started: float, precision: str = "bf16") -> dict[str, list[float]]:
    """Take steps in this process, which started at that time; return their seconds and what came before."""
    import resource

    step, import_seconds = LOOPS[loop](precision)
    step()
    first_step_seconds = time.time() - started
    seconds = seconds_in_turn({loop: step}, steps, warm_up=WARM_UP - 1)[loop]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return dict(zip(UNITS, (seconds, [import_seconds], [first_step_seconds], [peak]), strict=True))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=8)
    arguments = options.parse_args()

    from firstlight.machine.kernels.library import load
    from firstlight.machine.machine import choose

    machine, kernels = choose("cpu", "bf16"), load().words  # compiled now, so that no measurement pays for it
    results: dict[str, dict[str, list[float]]] = {loop: {unit: [] for unit in UNITS} for loop in LOOPS}
    for _ in range(arguments.rounds):
        for loop in LOOPS:
            plain = {"FIRSTLIGHT_KERNELS": "plain"} if loop == "stock" else {}
            result = in_own_process(measure, loop, arguments.steps, time.time(), **plain)
            for unit, values in result.items():
                results[loop][unit] += values
    medians = {
        loop: {unit: statistics.median(units[unit]) for unit in UNITS} for loop, units in results.items()
    }
    stock_step, our_step = (medians[loop]["step_seconds"] for loop in LOOPS)
    r, training = stock_step * EPOCH / BATCH, STEPS * our_step
    record(
        __file__,
        machine,
        keep=arguments.record,
        images_per_second=round(BATCH / our_step),
        baseline="the stock loop in bf16 autocast, channels-last",
        baseline_images_per_second=round(BATCH / stock_step),
        ratio=round(stock_step / our_step, 2),
        r_seconds=round(r, 1),
        assignment_r=round(training / r, 2),
        note=kernels,
        **{
            f"{prefix}{unit}": round(medians[loop][unit], 3)
            for prefix, loop in (("", "firstlight"), ("baseline_", "stock"))
            for unit in UNITS[1:]
        },
    )


if __name__ == "__main__":
    main()
