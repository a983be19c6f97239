"""The process in which gpu.py trains one recipe, or airbench's: a line with a seed in, a line of JSON out.

Only what Python itself brings is imported at once: airbench's own Python runs this file too, by its path.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASELINE = "airbench 0.1.8, train94"
EVALUATED = 2000
"""Test images at a time."""
TOY = {"train": 60, "test": 40}


class Trainer:
    """Trains one recipe, seed after seed, in the same places on the device."""

    def __init__(self, recipe: Any, options: argparse.Namespace) -> None:
        import torch

        from firstlight.machine.machine import choose

        self.recipe, self.options = recipe, options
        self.machine = choose(options.device, options.precision)
        if self.machine.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches of training have one shape
        self.train, test = recipe.data.load(options.data_dir)
        self.test = dataclasses.replace(test, images=test.images.to(self.machine.device))
        self.step: Any = None
        self.finding: Any = None

    def run(self, seed: int) -> dict[str, Any]:
        """Train and evaluate one seed; return its row."""
        from benchmarks.measure import place
        from firstlight.insight.evaluation import evaluate
        from firstlight.jobs.job import Job
        from firstlight.machine.clock import Stopwatch
        from firstlight.training.graph import choose_step
        from firstlight.training.loop import fit, train_step

        began = time.perf_counter()
        recipe, machine = dataclasses.replace(self.recipe, seed=seed), self.machine
        job = Job.with_images(self.train, self.test, recipe, machine)
        if self.step is None:
            if None in (recipe.schedule.peak_lr, recipe.schedule.min_lr):
                self.finding = job.find_rates()
            self.state = job.state()
            self.step = train_step if self.options.eager else choose_step(self.state, machine)
        else:
            restart(self.state, job.model)
        state, rates = self.state, job.rates(self.finding)
        watch = Stopwatch(machine)
        watch.start()
        self._whiten()
        for tick in fit(
            state,
            job.batches,
            job.schedule(self.finding),
            epochs=recipe.epochs,
            machine=machine,
            objective=recipe.objective,
            step=self.step,
        ):
            last = tick.epoch
        watch.pause()
        train_seconds = watch.seconds
        watch.start()
        augmented = evaluate(state.trained, job.test, machine, views=recipe.views, batch_size=EVALUATED)
        watch.pause()
        cold = time.time() - float(os.environ["STARTED"])
        plain = evaluate(state.trained, job.test, machine, batch_size=EVALUATED)
        low, high = plain.interval
        return {
            **place(machine),
            "recipe": recipe.name,
            "seed": seed,
            "epochs": recipe.epochs,
            "test_accuracy": plain.accuracy,
            "test_accuracy_tta": augmented.accuracy,
            "test_low_95": low,
            "test_high_95": high,
            "train_accuracy": last.train_accuracy,
            "train_loss": last.train_loss,
            "peak_lr": rates.peak_lr,
            "min_lr": rates.min_lr,
            "rates": "given" if self.finding is None else "found",
            "train_seconds": train_seconds,
            "tta_seconds": watch.seconds - train_seconds,
            "clock_seconds": watch.seconds,
            "cold_seconds": cold,
            "wall_seconds": time.perf_counter() - began,
            "step": "CUDA graph" if getattr(self.step, "fits", False) else "operation by operation",
            "settings": " ".join(self.options.settings),
            "finder_share": None if self.finding is None else self.finding.cost,
            "finder_seconds": None if self.finding is None else self.finding.seconds,
        }

    def _whiten(self) -> None:
        """Fit the first layer to the training images again, on the device and on the clock."""
        from firstlight.data.augment import normalise
        from firstlight.models.network import prepare

        images = self.train.images[:: -(-len(self.train) // 1000)].to(self.machine.device)
        prepare(self.state.model, normalise(images, self.train.mean, self.train.std))


def restart(state: Any, model: Any) -> None:
    """Begin a training anew with the weights of another network of the same make, in the same memory."""
    import torch

    state.model.load_state_dict(model.state_dict())
    if state.average is not None:
        state.average.module.load_state_dict(model.state_dict())
        state.average.n_averaged.zero_()
    for slots in state.optimizer.state.values():  # all of it begins at zero
        for value in slots.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    state.sums.zero_()
    state.first_loss.fill_(math.inf)
    state.first_bad_step.fill_(-1)
    state.step, state.seconds = 0, 0.0


def toy(recipe: Any) -> Any:
    """Return a recipe at a size at which anything runs through in a second, on the built-in set."""
    from firstlight.data.shapes import Shapes

    small = {"width": 4, "widths": (8, 16, 16), "stem": 8}
    names = {field.name for field in dataclasses.fields(recipe.model)}
    model = dataclasses.replace(recipe.model, **{key: small[key] for key in small if key in names})
    schedule = recipe.schedule.with_rates(0.1, 0.001)
    return recipe.over(2).replace(
        data=Shapes(**TOY),
        model=model,
        batch_size=20,
        validation=0,
        peak_lr=schedule.peak_lr,
        min_lr=schedule.min_lr,
    )


def airbench_worker() -> Callable[[int], dict[str, Any]]:
    """Return a function that trains airbench's 94 % recipe with a seed, in a folder that holds its data."""
    import airbench
    import torch

    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            airbench.train94(run=0)
        return airbench_result(output.getvalue())

    return run


def airbench_result(output: str) -> dict[str, Any]:
    """Read accuracies and the clock from the table that airbench prints; its last line is of the end."""
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if "|" in line]
    end = dict(zip(table[0], table[-1], strict=True))
    return {
        "baseline": BASELINE,
        "baseline_clock_seconds": float(end["total_time_seconds"]),
        "baseline_test_accuracy": float(end["val_acc"]),
        "baseline_test_accuracy_tta": float(end["tta_val_acc"]),
    }


def serve(run: Callable[[int], dict[str, Any]]) -> None:
    """Answer every line that holds a seed with one line of JSON; all else that is printed goes to stderr."""
    answers = sys.stdout
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            row = run(int(line))
        print(json.dumps(row), file=answers, flush=True)


def add_options(options: argparse.ArgumentParser) -> None:
    """Add what gpu.py takes for its worker."""
    options.add_argument("--device", default="auto")
    options.add_argument("--precision", default="auto")
    options.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--eager", action="store_true", help="no CUDA graph")
    options.add_argument("--toy", action="store_true", help="the whole way at a tiny size, to test it")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("recipe", help="or airbench")
    options.add_argument("--data-dir", type=Path)
    add_options(options)
    arguments = options.parse_args()
    if arguments.recipe == "airbench":
        serve(airbench_worker())
    else:
        from firstlight.recipes import resolve

        settings = dict(setting.split("=", 1) for setting in arguments.settings)
        recipe = resolve(arguments.recipe, text=settings)
        serve(Trainer(toy(recipe) if arguments.toy else recipe, arguments).run)


if __name__ == "__main__":
    main()
