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
suspects.safetensors    out-of-sample probabilities of the training set, and its most doubtful images
suspects.csv            the labels that are estimated to be wrong, the most doubtful first
summary.json            the numbers
checkpoints/            snapshots, while the run goes on
figures/, report.html   what is drawn from all this
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.suspects import Suspects
from firstlight.recipe import Recipe
from firstlight.record.run_folder import RECIPE, RunFolder
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
SUSPECTS = "suspects.safetensors"
SUSPECTS_TABLE = "suspects.csv"
SUMMARY = "summary.json"
REPORT = "report.html"
FIGURES = "figures"

KEPT_MISTAKES = 2000
KEPT_RIGHT_PER_CLASS = 30
KEPT_SUSPECTS = 60


@dataclass(frozen=True)
class DataFacts:
    """What a run folder remembers of its data: enough to normalise an image and to name a class."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class KeptSuspects:
    """What a run folder keeps of the doubtful labels of its training set.

    labels: int64, N, and probabilities: N×K, out of sample, rounded to fp16; of the whole training set.
    count: the estimated number of wrong labels.
    indices: int64, scores: fp32, suggested: int64, as in `Suspects`, images: uint8, and names; of the most
        doubtful, at most `KEPT_SUSPECTS`, the most doubtful first.
    """

    labels: Tensor
    probabilities: Tensor
    count: int
    indices: Tensor
    scores: Tensor
    suggested: Tensor
    images: Tensor
    names: Sequence[str]


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


def read_names(folder: RunFolder) -> dict[int, str]:
    """Return the names of the wrongly classified test images by index; a row that is none is passed over."""
    return _names_in(folder, MISTAKES)


def _names_in(folder: RunFolder, table: str) -> dict[int, str]:
    if not folder.has(table):
        return {}
    rows = csv.DictReader(io.StringIO(folder.read_text(table)))
    try:
        found = [(row.get("index"), row.get("name")) for row in rows]
    except csv.Error as error:
        raise InputError(f"{folder.path / table} is no table: {error}") from None
    # A number of thousands of digits is none that int() takes.
    return {int(i): name for i, name in found if i and name and i.isdecimal() and len(i) < 16}


def write_suspects(
    folder: RunFolder, found: Suspects, probabilities: Tensor, images: ImageSet
) -> KeptSuspects:
    """Keep the doubtful labels of a training set; both files are written, or neither is there."""
    kept = found.order[:KEPT_SUSPECTS]
    folder.write_tensors(
        SUSPECTS,
        {
            "labels": images.labels,
            "probabilities": probabilities.half(),
            "count": torch.tensor(found.count),
            "indices": kept,
            "scores": found.scores[kept],
            "suggested": found.suggested[kept],
            "images": images.images[kept],
        },
    )
    try:
        folder.write(SUSPECTS_TABLE, _table_of_suspects(found, images))
    except BaseException:
        folder.remove(SUSPECTS)
        folder.remove(SUSPECTS_TABLE)
        raise
    return KeptSuspects(
        images.labels,
        probabilities.half().float(),
        found.count,
        kept,
        found.scores[kept],
        found.suggested[kept],
        images.images[kept],
        [images.names[index] for index in kept.tolist()],
    )


def _table_of_suspects(found: Suspects, images: ImageSet) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "name", "label", "looks like", "score"])
    for index in found.order[: found.count].tolist():
        label, suggested = int(images.labels[index]), int(found.suggested[index])
        names = images.names[index], images.classes[label], images.classes[suggested]
        writer.writerow([index, *names, f"{float(found.scores[index]):.6f}"])
    return table.getvalue()


def read_suspects(folder: RunFolder) -> KeptSuspects | None:
    """Return the doubtful labels, None where they were not looked for.

    Only images in the table have their names; the others are named by their place in the training set.
    """
    if not folder.has(SUSPECTS):
        return None
    tensors, data = folder.read_tensors(SUSPECTS), read_data_facts(folder)
    try:
        labels, indices, suggested = (tensors[key].long() for key in ("labels", "indices", "suggested"))
        rows, scores = tensors["probabilities"].float(), tensors["scores"].float()
        images, count = tensors["images"], int(tensors["count"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder.path / SUSPECTS} is not as cross-fitting writes it: {error}") from None
    fits = (
        labels.ndim == indices.ndim == 1
        and rows.shape == (len(labels), len(data.classes))
        and scores.shape == suggested.shape == indices.shape
        and (images.dtype, images.shape) == (torch.uint8, (len(indices), *data.shape))
        and 0 <= count <= len(labels)
        and _within(torch.cat([labels, suggested]), len(data.classes))
        and _within(indices, len(labels))
    )
    if not fits:
        raise InputError(f"{folder.path / SUSPECTS} does not fit the {len(data.classes)} classes of the run")
    known = _names_in(folder, SUSPECTS_TABLE)
    names = [known.get(index, f"#{index}") for index in indices.tolist()]
    return KeptSuspects(labels, rows, count, indices, scores, suggested, images, names)


def _within(indices: Tensor, count: int) -> bool:
    return bool(((indices >= 0) & (indices < count)).all())
