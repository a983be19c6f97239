"""Train without a learning rate: Prodigy, DoG and Schedule-Free, in two settings of lr_regret.py.

    python -m benchmarks.lr_methods --data-dir DIR

Each as its authors advise where nothing is known: Prodigy at 1 with a cosine to 0, DoG at 1 and the mean of
the weights that it asks for, Schedule-Free AdamW at its own rate of 0.0025 with a tenth of the steps as
warm-up. Batch norm statistics of averaged weights are computed anew. Three seeds, scored as in lr_regret.py.

    pip install --no-deps prodigyopt dog-optimizer schedulefree
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks import lr_regret, measure
from firstlight.insight.evaluation import evaluate
from firstlight.machine.machine import choose
from firstlight.training.loop import train_step

TABLE = Path(__file__).with_suffix(".csv")
METHODS = ("Prodigy", "DoG", "Schedule-Free AdamW")
CHOSEN = ("resnet8 cifar4k sgd b128 e6", "resnet8 shapes4k adamw b128 e5")


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer that builds another package's, for a run of so many steps."""

    name: str
    steps: int

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        if self.name == "Prodigy":
            from prodigyopt import Prodigy

            return Prodigy(parameters, safeguard_warmup=True)  # type: ignore[no-any-return]
        if self.name == "DoG":
            from dog import DoG

            return DoG(parameters)  # type: ignore[no-any-return]
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(parameters, warmup_steps=self.steps // 10)  # type: ignore[no-any-return]

    def rate(self, step: int) -> float:
        if self.name == "Prodigy":
            return (1 + math.cos(math.pi * step / self.steps)) / 2
        return 1.0 if self.name == "DoG" else 0.0025


def one_run(name: str, method: str, seed: int, data_dir: Path | None) -> dict[str, Any]:
    """Train to the end, and return the row."""
    job, steps = lr_regret.ready(name, seed, data_dir), lr_regret.total_steps(name)
    chosen = Method(method, steps)
    job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, optimizer=chosen))
    state, recipe, model = job.state(), job.recipe, job.model
    averager = None
    if method == "DoG":
        from dog import PolynomialDecayAverager

        averager = PolynomialDecayAverager(model)
    model.train()
    if method.startswith("Schedule-Free"):
        state.optimizer.train()  # type: ignore[attr-defined]
    for epoch in range(recipe.epochs):
        for images, labels in job.batches.epoch(epoch):
            train_step(state, images, labels, chosen.rate(state.step), recipe.objective, job.machine)
            if averager is not None:
                averager.step()
    if method.startswith("Schedule-Free"):
        state.optimizer.eval()  # type: ignore[attr-defined]
    trained = model if averager is None else averager.averaged_model
    with job.machine.autocast():
        update_bn((images for images, _ in job.batches.epoch(recipe.epochs)), trained)
    accuracy = evaluate(trained, job.test, job.machine).accuracy
    return {"setting": name, "method": method, "seed": seed, "accuracy": accuracy}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data-dir", type=Path)
    arguments = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    there = {(row["setting"], row["method"], row["seed"]) for row in measure.read_rows(TABLE)}
    machine = choose(precision="bf16")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(one_run, name, method, seed, arguments.data_dir)
            for name in CHOSEN
            for method in METHODS
            for seed in range(lr_regret.SEEDS)
            if (name, method, str(seed)) not in there
        ]
        for future in as_completed(waiting):
            measure.record(__file__, machine, **future.result())


if __name__ == "__main__":
    main()
