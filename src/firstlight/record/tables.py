"""The tables of a run folder: CSV files that a person opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.suspects import Suspects

MOST_NAME = 4096
"""Characters of a name that are read; no path of a file is longer."""


def mistakes(evaluation: Evaluation) -> str:
    """Write every wrong prediction, the highest loss first."""
    header = ["index", "name", "true", "predicted", "confidence", "loss"]
    return _table(header, (_mistake(evaluation, index) for index in evaluation.mistakes.tolist()))


def _mistake(evaluation: Evaluation, index: int) -> list[object]:
    predicted, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
    confidence, loss = float(evaluation.probabilities[index, predicted]), float(evaluation.losses[index])
    names = evaluation.names[index], evaluation.classes[true], evaluation.classes[predicted]
    return [index, *names, f"{confidence:.6f}", f"{loss:.6f}"]


def suspects(ranking: Suspects, images: ImageSet) -> str:
    """Write the labels that are estimated to be wrong, the most doubtful first."""
    rows = []
    for index in ranking.order[: ranking.count].tolist():
        label, suggested = int(images.labels[index]), int(ranking.suggested[index])
        names = images.names[index], images.classes[label], images.classes[suggested]
        rows.append([index, *names, f"{float(ranking.scores[index]):.6f}"])
    return _table(["index", "name", "label", "looks like", "score"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def names(text: str) -> dict[int, str]:
    """Return the names of a table's images by index; a row that has none is passed over."""
    try:
        rows = [(row.get("index"), row.get("name")) for row in csv.DictReader(io.StringIO(text))]
    except csv.Error as error:
        raise InputError(f"the table is damaged: {error}") from None
    # A number of thousands of digits is none that int() takes.
    return {int(i): name[:MOST_NAME] for i, name in rows if i and name and i.isdecimal() and len(i) < 16}
