"""`Job`: a recipe made ready to run."""

from __future__ import annotations

import copy
import dataclasses
import platform
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from firstlight import __version__
from firstlight.data.augment import normalise
from firstlight.data.batches import Batches
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.jobs.progress import cost_after, silent
from firstlight.machine.clock import Stopwatch, duration
from firstlight.machine.limits import quota_words
from firstlight.machine.machine import Machine, choose, operations_on
from firstlight.machine.ranks import ALONE
from firstlight.machine.streams import seeded, stream
from firstlight.models.network import count_parameters, evaluating, prepare, set_normalisation
from firstlight.recipe import Recipe
from firstlight.recipes import command
from firstlight.training.graph import steps_on
from firstlight.training.loop import train_step
from firstlight.training.lr_finder import LRFinding
from firstlight.training.schedule import Schedule
from firstlight.training.state import Best, TrainState

_SAMPLES = 8
"""Training images that are kept to show their augmentations."""
_PREPARED_WITH = 1000
"""Training images, at most, that a network sees before it is trained."""
_NOT_TRAINED = "plain operations: no convolution is trained"
MOST_SCORED = 12
"""Points of the test curve, so that it costs a few percent of a run."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe made ready to run: its images, its machine, and its untrained network."""

    recipe: Recipe
    machine: Machine
    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    batches: Batches
    model: nn.Module
    data_dir: Path | None = None

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        data_dir: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        determinism: str = "draws",
    ) -> Job:
        """Load the data and build the network; nothing is written yet."""
        machine = choose(device, precision, determinism=determinism, trains=recipe.head is None)
        with machine.ranks.in_turn():
            images = recipe.data.load(data_dir)
        return dataclasses.replace(cls.with_images(*images, recipe, machine), data_dir=data_dir)

    @classmethod
    def with_images(cls, train: ImageSet, test: ImageSet, recipe: Recipe, machine: Machine) -> Job:
        """Make a recipe ready with these images, whatever data it names; validation comes out of `train`."""
        validation = None
        if recipe.validation:
            train, validation = train.split(recipe.validation, stream(recipe.seed, "validation"))
        batches = Batches(
            train, recipe.batch_size, recipe.augment, seed=recipe.seed, machine=machine, sides=recipe.sides
        )
        with seeded(recipe.seed, "weights"):
            model = recipe.model(len(train.classes), train.shape[0])
        for side in set(recipe.sides):
            _require_fit(model, train.shape[0], side)
        sample = train.images[:: -(-len(train) // _PREPARED_WITH)]
        set_normalisation(model, train.mean, train.std)
        prepare(model, normalise(sample, train.mean, train.std))
        machine.place(model)
        return cls(recipe, machine, train, validation, test, batches, model)

    def find_rates(self, log: Callable[[str], None] = silent) -> LRFinding:
        """Run the recipe's finder on copies of the network, in this process alone."""
        recipe, batches = self.recipe, self.batches.alone()
        return recipe.finder(
            self.model,
            batches,
            recipe.optimizer,
            batches.machine,
            objective=recipe.objective,
            schedule=recipe.schedule,
            epochs=recipe.epochs,
            log=log,
        )

    def rates(self, finding: LRFinding | None = None, halvings: int = 0) -> Schedule:
        """Return the recipe's schedule, with what it leaves open filled from a finding.

        halvings: how often both rates are halved, because training diverged.
        """
        schedule: Any = self.recipe.schedule
        if finding is not None:
            schedule = schedule.with_rates(finding.peak_lr, finding.min_lr)
        for _ in range(halvings):
            peak_lr, min_lr = schedule.peak_lr / 2, schedule.min_lr / 2
            schedule = dataclasses.replace(schedule, peak_lr=peak_lr, min_lr=min_lr)
        return schedule  # type: ignore[no-any-return]

    def schedule(self, finding: LRFinding | None = None, halvings: int = 0) -> Callable[[int], float]:
        """Return the function from the step to the rate; raises InputError where a rate is open."""
        return self.rates(finding, halvings).steps(self.recipe.epochs, len(self.batches))

    def state(self) -> TrainState:
        """Return the state of a training of the network, at step 0."""
        recipe = self.recipe
        state = TrainState.create(
            self.model, recipe.optimizer, self.machine, average_decay=recipe.average_decay
        )
        if recipe.best_on_validation:
            state.best = Best()
        return state

    def step_seconds(self, batches: Batches | None = None) -> float:
        """Time a training step of the last epoch on a copy of the network, warm-up apart."""
        machine = dataclasses.replace(self.machine, ranks=ALONE)  # its share of a batch, without the others
        state = TrainState.create(copy.deepcopy(self.model), self.recipe.optimizer, machine)
        state.model.train()
        seconds, last = [], self.recipe.epochs - 1
        for _, (images, labels) in zip(range(3), (batches or self.batches).epoch(last), strict=False):
            watch = Stopwatch(machine)
            watch.start()
            train_step(state, images, labels, 0.0, self.recipe.objective, machine)
            watch.pause()
            seconds.append(watch.seconds)
        return min(seconds)

    def batch_that_fits(self) -> int | None:
        """Halve the batch until a step finds memory enough; None where not even one image does."""
        size = self.recipe.batch_size // 2
        while size:
            batches = Batches(
                self.train, size, self.recipe.augment, seed=self.recipe.seed, machine=self.machine
            )
            try:
                self.step_seconds(batches)
            except (MemoryError, RuntimeError):
                size //= 2
                continue
            return size
        return None

    @property
    def costs(self) -> tuple[float, ...]:
        """The cost of a step in each epoch, in steps of the last: as much as its images are larger."""
        epochs = self.recipe.epochs
        sides = (*self.recipe.sides, *[self.train.shape[1]] * epochs)[:epochs]
        return tuple((side / sides[-1]) ** 2 for side in sides)

    def estimate(self, step_seconds: float, done: int = 0) -> dict[str, float]:
        """Return the seconds that each part of the run will take here, about, after `done` steps."""
        recipe, schedule = self.recipe, self.recipe.schedule
        open_rates = schedule.peak_lr is None or schedule.min_lr is None
        finder_steps = recipe.finder.expected_steps(recipe.epochs * len(self.batches))
        # A forward pass is a third of a step.
        tests = len(scored_epochs(recipe.epochs)) + len(recipe.views)
        passes = tests * len(self.test) + recipe.epochs * recipe.validation
        return {
            "learning rates": finder_steps * step_seconds if open_rates and not done else 0.0,
            "training": cost_after(done, self.costs, len(self.batches)) * step_seconds,
            "evaluation": passes / recipe.batch_size * step_seconds / 3,
        }

    def describe(self, done: int = 0) -> list[str]:
        """Say what is trained, on what, and how long it will take here from step `done` on."""
        machine, parts = self.machine, self.estimate(self.step_seconds(), done)
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
        threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
        threads += f" ({quota})" if (quota := quota_words()) else ""
        return [
            *self.train.notes,
            f"{self.recipe.name}: {len(self.train):,} images to train on, {len(self.test):,} to test, "
            f"{count_parameters(self.model):,} parameters",
            f"on {machine.hardware}; {machine.device.type}, {machine.precision}, {threads}",
            *self._shared(),
            *([] if (line := self.batches.order_words()) is None else [line]),
            f"{operations_on(machine)}; steps {steps_on(machine)}"
            if machine.device.type == "cuda"
            else operations_on(machine),
            f"about {duration(sum(parts.values()))} here ({listed})",
        ]

    def _shared(self) -> list[str]:
        """Say how several processes share the run."""
        count = self.machine.ranks.count
        if count == 1:
            return []
        norm = {
            "synchronised": "batch norm synchronised over all of them, as one process would compute it",
            "ghost": "ghost batch norm: each norms its own images, another recipe than one process's",
        }[self.recipe.batch_norm]
        return [
            f"{count} processes share each batch of {self.recipe.batch_size}; each has the threads above",
            norm,
        ]

    def samples(self) -> dict[str, Tensor]:
        """Return the first training images of epoch 1 with the draws that augment them there."""
        plan = self.batches.plan(0).rows(0, _SAMPLES)
        draws = {f"draws_{index}": rows for index, rows in enumerate(plan.draws)}
        return {"images": self.train.images[plan.order], "labels": self.train.labels[plan.order], **draws}

    def command(self) -> str:
        """Return the shell command that repeats the run on such a machine."""
        plain = ["firstlight", "train", self.recipe.name, "--precision", self.machine.precision]
        return command(self.recipe, self.machine.precision) or shlex.join(plain)

    def environment(self) -> dict[str, Any]:
        """Return versions, hardware and data, as a run keeps them."""
        machine, train, ranks = self.machine, self.train, self.machine.ranks
        blocks = self.batches.blocks
        return {
            "firstlight": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "hardware": machine.hardware,
            "device": machine.device.type,
            "precision": machine.precision,
            "threads": machine.threads,
            "allocator": machine.allocator,
            "kernels": operations_on(machine) if self.recipe.head is None else _NOT_TRAINED,
            "step": steps_on(machine),
            "determinism": machine.determinism,
            **({} if blocks is None else {"block_images": blocks.block, "window_images": blocks.window}),
            **({} if ranks.alone else {"ranks": ranks.count, "batch_norm": self.recipe.batch_norm}),
            "command": self.command(),
            "data": {
                "source": self.recipe.data.name,
                "classes": list(train.classes),
                "shape": list(train.shape),
                "mean": list(train.mean),
                "std": list(train.std),
                "train_images": len(train),
                "validation_images": 0 if self.validation is None else len(self.validation),
                "test_images": len(self.test),
                "train_sha256": train.digest,
                "test_sha256": self.test.digest,
            },
        }


def _require_fit(model: nn.Module, channels: int, side: int) -> None:
    """Raise InputError where a network cannot take images of side×side."""
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, channels, side, side))
    except RuntimeError:
        raise InputError(
            f"sides: the network cannot take images of {side}×{side}",
            "Set larger ones, or sides= for none.",
        ) from None


def scored_epochs(epochs: int) -> range:
    """Return the epochs, evenly spaced and with the last among them, whose weights the test set scores."""
    apart = -(-epochs // MOST_SCORED)
    return range((epochs - 1) % apart + 1, epochs + 1, apart)
