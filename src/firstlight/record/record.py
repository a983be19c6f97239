"""`Record`: every result of a run folder, read and written.

recipe.json             the recipe as it was run
environment.json        versions, hardware, and the data with its hashes
finding.json            the learning-rate finding, where there was one
history.jsonl           one line an epoch
model.safetensors       the weights that were kept
predictions.safetensors labels and probabilities of the test set, with and without test-time augmentation
mistakes.csv            every wrong prediction, the highest loss first
pictures.safetensors    the test images that pictures of the run show
whole.safetensors       the worst mistakes of own pictures that are not square, as small JPEG files
samples.safetensors     some training images, with the draws that augmented them
suspects.safetensors    out-of-sample probabilities of the training set, and its most doubtful images
suspects.csv            the labels that are estimated to be wrong, the most doubtful first
summary.json            the numbers
checkpoints/            snapshots, while the run goes on
figures/, report.html   what is drawn from all this
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from firstlight.data.images import DataFacts, ImageSet
from firstlight.errors import InputError, printable
from firstlight.insight.evaluation import Evaluation
from firstlight.recipe import Recipe
from firstlight.record import results, tables
from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
from firstlight.record.recipe_file import recipe_from_json
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.record.summary import Summary
from firstlight.record.suspects import TrainingSuspects
from firstlight.record.values import MOST_COUNT
from firstlight.training.history import History
from firstlight.training.loop import Tick
from firstlight.training.lr_finder import LRFinding
from firstlight.training.state import Captured, TrainState, capture, restore

ENVIRONMENT = "environment.json"
FINDING = "finding.json"
HISTORY = "history.jsonl"
MODEL = "model.safetensors"
PREDICTIONS = "predictions.safetensors"
MISTAKES = "mistakes.csv"
PICTURES = "pictures.safetensors"
SAMPLES = "samples.safetensors"
SUMMARY = "summary.json"
REPORT = "report.html"
FIGURES = "figures"

KEPT_MISTAKES = 2000
KEPT_RIGHT_PER_CLASS = 30
MOST_HALVINGS = 5


class Record:
    """The results of one run. A result that is not there is None or empty; a damaged one is an InputError."""

    def __init__(self, folder: RunFolder, parts: Sequence[Any] = ()) -> None:
        self.folder, self.path, self._parts = folder, folder.path, parts

    @classmethod
    def open(cls, path: str | Path, parts: Sequence[Any] = ()) -> Self:
        """Open a run folder.

        parts: a user's own classes that its recipe names. Without them the run still opens, and shows all
        that needs no network.
        """
        return cls(RunFolder.open(Path(path)), parts)

    @cached_property
    def recipe(self) -> Recipe:
        values = self.folder.read_json(RECIPE).get("recipe")
        if not isinstance(values, dict):
            raise InputError(f"{self._where(RECIPE)} holds no recipe")
        try:
            return recipe_from_json(values, self._parts)
        except InputError as error:
            raise InputError(f"{self._where(RECIPE)}: {error.message}", error.hint) from None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, and the data with its hashes."""
        return results.plain_environment(self.folder.read_json(ENVIRONMENT), self._where(ENVIRONMENT))

    @cached_property
    def data(self) -> DataFacts:
        """What the run remembers of its images."""
        return results.data_facts(self.environment, self._where(ENVIRONMENT))

    @cached_property
    def finding(self) -> LRFinding | None:
        """The learning-rate finding, None where both rates were given."""
        if not self.folder.has(FINDING):
            return None
        return results.finding(self.folder.read_json(FINDING), self._where(FINDING))

    @property
    def halvings(self) -> int:
        """How often the rates were halved because training diverged."""
        return min(max(self.summary.halvings or 0, 0), MOST_HALVINGS)

    @cached_property
    def history(self) -> History:
        return results.history(self.folder, HISTORY) if self.folder.has(HISTORY) else History()

    @cached_property
    def summary(self) -> Summary:
        return Summary.from_json(self.folder.read_json(SUMMARY) if self.folder.has(SUMMARY) else {})

    @property
    def is_begun(self) -> bool:
        """Whether its first step may have been taken; before that, a new start loses nothing."""
        return self.folder.has(RECIPE)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end, its page included."""
        evaluated = self.summary.test_accuracy is not None and not self.summary.interrupted
        return evaluated and self.folder.has(REPORT)

    @property
    def rates(self) -> tuple[float, float] | None:
        """The highest and the lowest rate as they were run, None before the first epoch is finished."""
        peak, low = self.summary.peak_lr, self.summary.min_lr
        return None if not len(self.history) or peak is None or low is None else (peak, low)

    @cached_property
    def schedule(self) -> Callable[[int], float] | None:
        """From the step to the rate as it was run, None where the folder alone does not tell."""
        if self.rates is not None:
            with contextlib.suppress(InputError):  # a schedule that is not built in
                schedule = self.recipe.schedule.with_rates(*self.rates)
                return schedule.steps(self.recipe.epochs, self.history.epochs[0].step)
        return None

    @cached_property
    def model(self) -> nn.Module:
        """The trained network, on the CPU, in fp32."""
        if not self.folder.has(MODEL):
            raise InputError(f"{self.path} keeps no weights")
        return results.network(self.folder, MODEL, self.recipe, self.data)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The answers on the test set, without test-time augmentation; images are named by their index."""
        return self._evaluation("probabilities")

    @cached_property
    def evaluation_tta(self) -> Evaluation | None:
        """The answers on the test set with test-time augmentation."""
        return self._evaluation("probabilities_tta")

    def _evaluation(self, key: str) -> Evaluation | None:
        if not self.folder.has(PREDICTIONS):
            return None
        tensors = self.folder.read_tensors(PREDICTIONS)
        return results.evaluation(tensors, key, self.data.classes, self._where(PREDICTIONS))

    @property
    def names(self) -> dict[int, str]:
        """The names of the wrongly classified test images by index."""
        return tables.names(self.folder.read_text(MISTAKES)) if self.folder.has(MISTAKES) else {}

    @property
    def kept_images(self) -> tuple[Tensor, Tensor] | None:
        """The kept test images and their indices in the test set; mistakes come first, the worst first."""
        if not self.folder.has(PICTURES):
            return None
        evaluation, tensors = self.evaluation, self.folder.read_tensors(PICTURES)
        count = MOST_COUNT if evaluation is None else len(evaluation.labels)
        return results.kept_images(tensors, self.data.shape, count, self._where(PICTURES))

    @property
    def samples(self) -> dict[str, Tensor] | None:
        """Some training images with the draws that augmented them in epoch 1."""
        if not self.folder.has(SAMPLES):
            return None
        tensors = self.folder.read_tensors(SAMPLES)
        return results.samples(tensors, self.data, self.recipe.augment, self._where(SAMPLES))

    @property
    def suspects(self) -> TrainingSuspects | None:
        """The label errors of the training set, None where they were not looked for."""
        return TrainingSuspects.read(self.folder, self.data)

    def _where(self, name: str) -> str:
        return printable(self.path / name)

    # What follows writes.

    @classmethod
    def create(cls, name: str, out: Path | None = None) -> Self:
        """Make a new run folder: `out`, which must not exist yet, or runs/NAME with a number when taken."""
        return cls(RunFolder.create(name, out))

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder)

    def begin(
        self,
        recipe: Recipe,
        finding: LRFinding | None,
        environment: dict[str, Any],
        samples: dict[str, Tensor],
    ) -> None:
        """Write what is known before the first step; the recipe comes last and makes the folder a run."""
        self.folder.write_tensors(SAMPLES, samples)
        self.folder.write_json(ENVIRONMENT, environment)
        if finding is not None:
            self.folder.write_json(FINDING, finding.to_json())
        self.folder.write_json(RECIPE, {"recipe": recipe.to_json()})
        self.finding = finding

    def halve(self) -> None:
        """Start again, with the rates halved once more: what training has left is removed."""
        # Counted last: a run that is stopped in between starts anew, and diverges and is halved again.
        self.remove_checkpoints()
        self.write_history(History())
        self.write_summary(Summary(halvings=self.halvings + 1))

    def restore(self, state: TrainState, steps: int) -> list[str]:
        """Give a fresh state what the last whole checkpoint holds, where there is one; say what happened.

        steps: of the whole training.
        """
        self.folder.sweep()
        checkpoint = self.checkpoints.last()
        lines = [
            f"checkpoint {name} is damaged; the one before it is used" for name in self.checkpoints.damaged
        ]
        if checkpoint is None:
            self.history = History()
            return lines
        tensors, facts = checkpoint
        restore(state, Captured(tensors, facts.get("state", {})))
        if state.step > steps:
            raise InputError(f"the checkpoint in {self.path} is of step {state.step:,} of {steps:,}")
        self.history = results.history_of(facts.get("history"), "the checkpoint's history")
        return [*lines, f"going on after step {state.step:,} of {steps:,}"]

    def keep(self, tick: Tick, state: TrainState, *, checkpoint: bool = False) -> None:
        """Write what a moment of training leaves: at an epoch's end its history, weights and a checkpoint.

        checkpoint: write a checkpoint within an epoch too.
        """
        if tick.epoch is not None:
            self.checkpoints.save_snapshot(tick.epoch.epoch, state.trained.state_dict())
            self.write_history(self.history.with_epoch(tick.epoch))
        if tick.epoch is not None or checkpoint:
            captured = capture(state)
            facts = {"state": captured.facts, "history": self.history.to_json()}
            self.checkpoints.save(state.step, captured.tensors, facts)

    def write_history(self, history: History) -> None:
        self.history = history
        self.folder.write(HISTORY, history.to_jsonl())

    def write_model(self, model: nn.Module) -> None:
        self.folder.write_tensors(MODEL, model.state_dict())

    def write_evaluation(self, plain: Evaluation, averaged: Evaluation | None, images: ImageSet) -> None:
        """Write all probabilities, a table of mistakes, and the images that pictures need.

        averaged: with test-time augmentation, where it was measured.
        """
        probabilities = {"probabilities": plain.probabilities}
        if averaged is not None:
            probabilities["probabilities_tta"] = averaged.probabilities
        self.folder.write_tensors(PREDICTIONS, {"labels": plain.labels, **probabilities})
        self.folder.write(MISTAKES, tables.mistakes(plain))
        right = [
            torch.nonzero((plain.labels == label) & (plain.predictions == label)).flatten()[
                :KEPT_RIGHT_PER_CLASS
            ]
            for label in range(len(plain.classes))
        ]
        indices = torch.cat([plain.mistakes[:KEPT_MISTAKES], *right])
        self.folder.write_tensors(PICTURES, {"indices": indices, "images": images.images[indices]})

    def write_summary(self, summary: Summary) -> None:
        self.summary = summary
        self.folder.write_json(SUMMARY, summary.to_json())

    def remove_checkpoints(self) -> None:
        self.folder.remove(CHECKPOINTS)
