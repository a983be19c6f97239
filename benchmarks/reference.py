"""The yardstick R: what PyTorch's stock loop needs for 50,000 images here, in turn with Firstlight's.

    python benchmarks/reference.py [--rounds 3] [--steps 8] [--record]

Each measurement is a process of its own (A B A B …), so that neither inherits the other's memory settings.
Both train the assignment's network in batches of 512 on the same augmented random images:
- *stock*: autocast to bf16, channels-last, the modules that torch has, its optimizer, the default allocator;
- *firstlight*: `train_step` on the machine that `choose` makes.
Medians of all steps but the first three of each process are compared. Also of both: the time that
`import torch` and `import firstlight` take (the latter loads torch when it is needed), from the start of the
process to the end of its first step, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

EPOCH = 50_000
BATCH = 512
STEPS = 24 * (EPOCH // BATCH)
"""Steps of the assignment: 24 epochs, of which each drops its last short batch."""
WARM_UP = 3
LOOPS = ("stock", "firstlight")
UNITS = {
    "step_seconds": "seconds a step",
    "import_seconds": "seconds to import",
    "first_step_seconds": "seconds to the end of the first step",
    "peak_gigabytes": "gigabytes of memory at most",
}


def stock() -> tuple[Callable[[], object], float]:
    """Return a step of the stock loop, and the seconds that its imports took."""
    start = time.perf_counter()
    import torch
    from torch.nn import functional as F

    seconds = time.perf_counter() - start
    from firstlight.models.custom_resnet import CustomResNet

    model = CustomResNet(10, bias=False, logit_scale=0.125).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = images()

    def step() -> object:
        pixels, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, seconds


def firstlight() -> tuple[Callable[[], object], float]:
    """Return a step of Firstlight's loop, and the seconds that its imports took."""
    start = time.perf_counter()
    import firstlight  # noqa: F401

    seconds = time.perf_counter() - start
    from firstlight.machine.machine import choose
    from firstlight.models.custom_resnet import CustomResNet
    from firstlight.training.loop import TrainState, train_step
    from firstlight.training.objective import Objective
    from firstlight.training.optimizers import SGD

    machine = choose("cpu", "bf16")
    state = TrainState.create(CustomResNet(10, bias=False, logit_scale=0.125), SGD(), machine)
    batches = images()
    return lambda: train_step(state, *next(batches), 0.05, Objective(), machine), seconds


def images() -> Any:
    """Yield augmented batches of random images without end."""
    import torch

    from firstlight.data.batches import Batches
    from firstlight.data.images import ImageSet
    from firstlight.machine.machine import Machine
    from firstlight.machine.streams import stream
    from firstlight.recipes import named

    count = 8 * BATCH
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "pixels"))
    labels = torch.arange(count) % 10
    names = [str(number) for number in range(count)]
    classes = tuple("0123456789")
    made = ImageSet(pixels, labels, classes, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), names)
    machine = Machine(torch.device("cpu"), "bf16", torch.get_num_threads(), "")
    batches = Batches(made, BATCH, named("cifar10.assignment").augment, seed=0, machine=machine)
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def measure(loop: str, steps: int) -> dict[str, Any]:
    """Take steps in this process; return their seconds and what came before them."""
    import resource

    step, importing = {"stock": stock, "firstlight": firstlight}[loop]()
    step()
    # The clock of the process counts from its start, the interpreter's included.
    first = time.time() - float(os.environ["STARTED"])
    seconds = []
    for _ in range(WARM_UP - 1 + steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    unit = 1e9 if sys.platform == "darwin" else 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {
        "step_seconds": seconds[WARM_UP - 1 :],
        "import_seconds": [importing],
        "first_step_seconds": [first],
        "peak_gigabytes": [peak],
    }


def in_own_process(loop: str, steps: int) -> dict[str, Any]:
    kernels = {"FIRSTLIGHT_KERNELS": "plain"} if loop == "stock" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", loop, "--steps", str(steps)],
        env={**os.environ, **kernels, "STARTED": str(time.time())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--record", action="store_true", help="append a row to results.csv")
    parser.add_argument("--measure", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.steps)))
        return

    from firstlight.machine.kernels.library import load
    from firstlight.machine.machine import choose

    path = load().words  # compiled now, so that no measurement pays for it
    found: dict[str, dict[str, list[float]]] = {loop: {unit: [] for unit in UNITS} for loop in LOOPS}
    for number in range(arguments.rounds):
        for loop in LOOPS:
            measured = in_own_process(loop, arguments.steps)
            for unit, values in measured.items():
                found[loop][unit] += values
            print(
                f"round {number + 1}, {loop}: {statistics.median(measured['step_seconds']):.3f} s a step",
                flush=True,
            )
    medians = {
        loop: {unit: statistics.median(values) for unit, values in found[loop].items()} for loop in LOOPS
    }
    stock_step, our_step = (medians[loop]["step_seconds"] for loop in LOOPS)
    r = stock_step * EPOCH / BATCH
    training = STEPS * our_step
    machine = choose("cpu", "bf16")
    import torch

    print(f"\non {machine.hardware}, {machine.threads} threads, torch {torch.__version__}; {path}\n")
    print(f"| | {' | '.join(LOOPS)} |\n|---|---|---|")
    for unit, words in UNITS.items():
        print(f"| {words} | {' | '.join(f'{medians[loop][unit]:.3g}' for loop in LOOPS)} |")
    print(f"| images a second | {BATCH / stock_step:.0f} | {BATCH / our_step:.0f} |")
    print(
        f"\nR, 50,000 images with the stock loop: {r:.0f} s. "
        f"Firstlight is {stock_step / our_step:.2f} times as fast;"
    )
    print(f"24 epochs of the assignment ({STEPS} steps): {training:.0f} s = {training / r:.2f} R")
    if arguments.record:
        from rows import add_row

        add_row(
            {
                "script": "benchmarks/reference.py",
                "date": datetime.now(UTC).date().isoformat(),
                "hardware": machine.hardware,
                "torch": torch.__version__,
                "precision": "bf16",
                "threads": machine.threads,
                "images_per_second": round(BATCH / our_step),
                "baseline": "the stock loop in bf16 autocast, channels-last",
                "baseline_images_per_second": round(BATCH / stock_step),
                "ratio": round(stock_step / our_step, 2),
                "device": "cpu",
                "r_seconds": round(r, 1),
                "assignment_r": round(training / r, 2),
                **{
                    f"{prefix}{unit}": round(medians[loop][unit], 3)
                    for prefix, loop in (("", "firstlight"), ("baseline_", "stock"))
                    for unit in UNITS
                    if unit != "step_seconds"
                },
                "note": path,
            }
        )


if __name__ == "__main__":
    main()
