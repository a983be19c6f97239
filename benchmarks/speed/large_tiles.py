"""What larger Winograd tiles bring a step in bf16, and what they cost its gradients in precision.

    python -m benchmarks.speed.large_tiles --data-dir DIR [--steps 500] [--rounds 7] [--record]

The network of cifar10.fast takes some steps, half of them all by default; then, at each side of its images:
- a training step with tiles of 2 outputs a side (small), with larger ones for gradients (gradients), and with
  larger ones for outputs too (all), in turn (A B C A B C …);
- how far the filters' gradients of a batch are from those in fp32, relative to these: the median over the
  filters, in these three ways, and beside it how far those of the next batch are from them;
- the cosine of Muon's steps with those from fp32, likewise.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

from torch import Tensor, nn

from benchmarks.measure import parser, record, seconds_in_turn
from firstlight.jobs.job import Job
from firstlight.machine.kernels import convolution
from firstlight.machine.machine import Machine, choose
from firstlight.models.blocks import ConvBlock
from firstlight.recipes import named
from firstlight.training.loop import fit, train_step
from firstlight.training.objective import Objective
from firstlight.training.optimizers import orthogonalised

SIDES = (24, 32)
WAYS = ("small", "gradients", "all")
Batch = tuple[Tensor, Tensor]


@contextlib.contextmanager
def tiles(way: str, model: nn.Module) -> Iterator[None]:
    """Have the network's convolutions computed in one of the ways named above."""
    blocks = [module for module in model.modules() if isinstance(module, ConvBlock)]
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(patch.object(block, "large_tiles", way == "all"))
        if way == "small":
            stack.enter_context(patch.object(convolution, "large_tile", lambda *of, pool=False: None))
        yield


def gradients(model: nn.Module, batch: Batch, objective: Objective, machine: Machine) -> list[Tensor]:
    """Return the gradients of the filters, out×C×3×3, of a copy of the network."""
    model = copy.deepcopy(model).train()
    images, labels = batch
    with machine.autocast():
        logits = model(images.to(machine.dtype))
    objective(logits, labels).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None and weight.ndim == 4]


def compared(found: list[Tensor], exact: list[Tensor], measure: Callable[[Tensor, Tensor], float]) -> float:
    return statistics.median(map(measure, found, exact))


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def cosine(found: Tensor, exact: Tensor) -> float:
    one, other = (orthogonalised(gradient.flatten(1)) for gradient in (found, exact))
    return float((one * other).sum() / one.norm() / other.norm())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True)
    options.add_argument("--steps", type=int, default=500, help="before anything is measured")
    options.add_argument("--rounds", type=int, default=7)
    arguments = options.parse_args()
    machine, exact = choose("cpu", "bf16"), choose("cpu", "fp32")
    recipe = named("cifar10.fast")
    job = Job.prepare(recipe, arguments.data_dir, "cpu", "bf16")
    state = job.state()
    for tick in fit(
        state,
        job.batches,
        job.schedule(),
        epochs=recipe.epochs,
        machine=machine,
        objective=recipe.objective,
        tick_seconds=0,
    ):
        if tick.step == arguments.steps:
            break
    for side in SIDES:
        sides = (side,) * recipe.epochs
        batches = Job.with_images(
            job.train, job.test, dataclasses.replace(recipe, sides=sides), machine
        ).batches
        one, other = islice(batches.epoch(1), 2)
        in_fp32, of_next = (gradients(state.model, batch, recipe.objective, exact) for batch in (one, other))
        found = {"next_batch": of_next}
        for way in WAYS:
            with tiles(way, state.model):
                found[way] = gradients(state.model, one, recipe.objective, machine)

        def step(way: str) -> None:
            with tiles(way, state.model):
                train_step(state, *one, 0.0, recipe.objective, machine)  # noqa: B023 - called in this round

        seconds = seconds_in_turn({way: partial(step, way) for way in WAYS}, arguments.rounds)
        times = {name: statistics.median(values) for name, values in seconds.items()}
        record(
            __file__,
            machine,
            keep=arguments.record,
            steps=arguments.steps,
            side=side,
            **{f"{way}_seconds": round(times[way], 3) for way in WAYS},
            **{f"{way}_ratio": round(times["small"] / times[way], 2) for way in WAYS[1:]},
            **{f"{name}_distance": round(compared(way, in_fp32, distance), 4) for name, way in found.items()},
            **{f"{name}_cosine": round(compared(way, in_fp32, cosine), 4) for name, way in found.items()},
        )


if __name__ == "__main__":
    main()
