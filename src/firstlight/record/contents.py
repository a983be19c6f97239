"""What lies in a run folder: each kind of result, written and read side by side.

recipe.json             the recipe as it was run
environment.json        versions, hardware, and the data with its hashes
finding.json            the learning-rate finding, where there was one
history.jsonl           one line an epoch
model.safetensors       the weights that were kept
predictions.safetensors labels and probabilities of the test set, with and without TTA
mistakes.csv            every wrong prediction, the highest loss first
pictures.safetensors    the test images that pictures of the run show
samples.safetensors     some training images, with the draws that augmented them
summary.json            the numbers
checkpoints/            snapshots, while the run goes on
figures/, report.html   what is drawn from all this
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.recipe import Recipe
from firstlight.record.folder import RECIPE, RunFolder
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

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


@dataclass(frozen=True)
class DataFacts:
    """What a run folder remembers of its data: enough to normalise an image and to name a class."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def write_start(
    folder: RunFolder,
    recipe: Recipe,
    finding: LRFinding | None,
    environment: dict[str, Any],
    samples: dict[str, Tensor],
) -> None:
    """Keep what is known before the first step; the recipe comes last and makes the folder a run."""
    folder.write_tensors(SAMPLES, samples)
    folder.write_json(ENVIRONMENT, environment)
    if finding is not None:
        folder.write_json(FINDING, finding.to_json())
    folder.write_json(RECIPE, {"recipe": recipe.to_json()})


def read_recipe(folder: RunFolder) -> Recipe:
    values = folder.read_json(RECIPE).get("recipe")
    if not isinstance(values, dict):
        raise InputError(f"{folder.path / RECIPE} holds no recipe")
    return Recipe.from_json(values)


def read_data_facts(folder: RunFolder) -> DataFacts:
    data = folder.read_json(ENVIRONMENT).get("data")
    try:
        channels, height, width = map(int, data["shape"])  # type: ignore[index]
        mean, std = (tuple(map(float, data[key])) for key in ("mean", "std"))  # type: ignore[index]
        classes = tuple(map(str, data["classes"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder.path / ENVIRONMENT} does not describe the data") from None
    return DataFacts(classes, (channels, height, width), mean, std)


def read_finding(folder: RunFolder) -> LRFinding | None:
    """Return the finding, None where both rates were given."""
    if not folder.has(FINDING):
        return None
    values = folder.read_json(FINDING)
    values.pop("schema", None)
    return LRFinding.from_json(values)


def write_history(folder: RunFolder, history: History) -> None:
    folder.write(HISTORY, history.to_jsonl())


def read_history(folder: RunFolder) -> History:
    return History.from_jsonl(folder.read_text(HISTORY)) if folder.has(HISTORY) else History()


def write_evaluation(folder: RunFolder, plain: Evaluation, mirrored: Evaluation, images: ImageSet) -> None:
    """Keep all probabilities, a table of all mistakes, and the images that pictures of the run need."""
    folder.write_tensors(
        PREDICTIONS,
        {
            "labels": plain.labels,
            "probabilities": plain.probabilities,
            "probabilities_tta": mirrored.probabilities,
        },
    )
    folder.write(MISTAKES, _table_of_mistakes(plain))
    right = [
        torch.nonzero((plain.labels == label) & (plain.predictions == label)).flatten()[:KEPT_RIGHT_PER_CLASS]
        for label in range(len(plain.classes))
    ]
    kept = torch.cat([plain.mistakes[:KEPT_MISTAKES], *right])
    folder.write_tensors(PICTURES, {"indices": kept, "images": images.images[kept]})


def _table_of_mistakes(evaluation: Evaluation) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "name", "true", "predicted", "confidence", "loss"])
    for index in evaluation.mistakes.tolist():
        said, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        confidence, loss = float(evaluation.probabilities[index, said]), float(evaluation.losses[index])
        names = evaluation.names[index], evaluation.classes[true], evaluation.classes[said]
        writer.writerow([index, *names, f"{confidence:.6f}", f"{loss:.6f}"])
    return table.getvalue()


def read_evaluation(folder: RunFolder, *, tta: bool = False) -> Evaluation | None:
    """Return the evaluation on the test set, None where the run has none."""
    if not folder.has(PREDICTIONS):
        return None
    tensors = folder.read_tensors(PREDICTIONS)
    classes = read_data_facts(folder).classes
    try:
        labels, rows = tensors["labels"], tensors["probabilities_tta" if tta else "probabilities"].float()
    except KeyError as error:
        raise InputError(f"{folder.path / PREDICTIONS} lacks {error}") from None
    if rows.shape != (len(labels), len(classes)):
        raise InputError(f"{folder.path / PREDICTIONS} does not fit the {len(classes)} classes of the run")
    return Evaluation(classes, labels.long(), rows, range_names(len(labels)), tta)


def range_names(count: int) -> list[str]:
    """Names for images whose own names only the table of mistakes keeps: their places in the test set."""
    return [f"#{index}" for index in range(count)]


def read_tensors(folder: RunFolder, name: str) -> dict[str, Tensor] | None:
    """Return the tensors of `PICTURES` or `SAMPLES`, None where the run keeps none."""
    return folder.read_tensors(name) if folder.has(name) else None


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """Return the numbers of the run; empty where it did not get that far."""
    return folder.read_json(SUMMARY) if folder.has(SUMMARY) else {}


def write_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    folder.write_json(SUMMARY, summary)
