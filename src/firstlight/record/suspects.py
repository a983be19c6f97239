"""The label errors of a training set, as a run folder keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from firstlight.data.images import DataFacts, ImageSet
from firstlight.errors import printable
from firstlight.insight.suspects import Suspects
from firstlight.record import tables
from firstlight.record.run_folder import RunFolder
from firstlight.record.values import check_tensor

SUSPECTS = "suspects.safetensors"
SUSPECTS_TABLE = "suspects.csv"
KEPT_SUSPECTS = 60


@dataclass(frozen=True, eq=False)
class TrainingSuspects:
    """What a run folder keeps of the label errors of its training set.

    labels: int64, N, and probabilities: N×K, out of sample, rounded to fp16; of the whole training set.
    count: the estimated number of wrong labels, and its 95 % interval, none from an earlier version.
    indices: int64, scores: fp32, suggested: int64, as in `Suspects`, images: uint8, and names; of the most
        doubtful, at most `KEPT_SUSPECTS`, the most doubtful first.
    """

    labels: Tensor
    probabilities: Tensor
    count: int
    interval: tuple[int, int] | None
    indices: Tensor
    scores: Tensor
    suggested: Tensor
    images: Tensor
    names: Sequence[str]

    @classmethod
    def write(cls, folder: RunFolder, ranking: Suspects, probabilities: Tensor, images: ImageSet) -> Self:
        """Keep the ranking of a training set; both files are written, or neither is there."""
        kept = ranking.order[:KEPT_SUSPECTS]
        tensors = {
            "labels": images.labels,
            "probabilities": probabilities.half(),
            "count": torch.tensor(ranking.count),
            "interval": torch.tensor(ranking.interval),
            "indices": kept,
            "scores": ranking.scores[kept],
            "suggested": ranking.suggested[kept],
            "images": images.images[kept],
            "names": _encoded([images.names[index] for index in kept.tolist()]),
        }
        folder.write_tensors(SUSPECTS, tensors)
        try:
            folder.write(SUSPECTS_TABLE, tables.suspects(ranking, images))
        except BaseException:
            folder.remove(SUSPECTS)
            folder.remove(SUSPECTS_TABLE)
            raise
        return cls(
            images.labels,
            probabilities.half().float(),
            ranking.count,
            ranking.interval,
            kept,
            ranking.scores[kept],
            ranking.suggested[kept],
            images.images[kept],
            [images.names[index] for index in kept.tolist()],
        )

    @classmethod
    def read(cls, folder: RunFolder, data: DataFacts) -> Self | None:
        """Return what `write` wrote, None where there is nothing; InputError where it does not fit the data.

        In a folder of an earlier version images outside the table are named by their index.
        """
        if not folder.has(SUSPECTS):
            return None
        tensors, where = folder.read_tensors(SUSPECTS), printable(folder.path / SUSPECTS)
        classes = len(data.classes)

        def column(key: str, count: int | None, most: float, dtypes: Sequence[torch.dtype]) -> Tensor:
            return check_tensor(tensors.get(key), f"{where}: {key}", dtypes, (count,), (0, most))

        whole, real = (torch.int64,), (torch.float16, torch.float32)
        labels = column("labels", None, classes - 1, whole)
        indices = column("indices", None, len(labels) - 1, whole)
        kept = len(indices)
        suggested = column("suggested", kept, classes - 1, whole)
        scores = check_tensor(tensors.get("scores"), f"{where}: scores", real, (kept,), (-1e9, 1e9))
        shape = len(labels), classes
        rows = check_tensor(tensors.get("probabilities"), f"{where}: probabilities", real, shape, (0, 1.01))
        images = check_tensor(tensors.get("images"), f"{where}: images", (torch.uint8,), (kept, *data.shape))
        bounds = 0, len(labels)
        count = int(check_tensor(tensors.get("count"), f"{where}: count", whole, (), bounds))
        interval = _interval(tensors.get("interval"), f"{where}: interval", bounds)
        known = tables.names(folder.read_text(SUSPECTS_TABLE)) if folder.has(SUSPECTS_TABLE) else {}
        written = _decoded(tensors.get("names"))
        if len(written) != len(indices):  # by an earlier version
            written = [f"#{index}" for index in indices.tolist()]
        names = [known.get(index, name) for index, name in zip(indices.tolist(), written, strict=True)]
        return cls(labels, rows.float(), count, interval, indices, scores.float(), suggested, images, names)


def _interval(values: Tensor | None, name: str, bounds: tuple[int, int]) -> tuple[int, int] | None:
    if values is None:  # by an earlier version
        return None
    low, high = check_tensor(values, name, (torch.int64,), (2,), bounds).tolist()
    return low, high


def _encoded(names: Sequence[str]) -> Tensor:
    """Return names as bytes, uint8, each ended by a zero."""
    text = "".join(f"{name}\0" for name in names).encode(errors="surrogateescape")
    return torch.tensor(list(text), dtype=torch.uint8)


def _decoded(names: Tensor | None) -> list[str]:
    """Return what `_encoded` wrote; nothing where there is nothing."""
    text = b"" if names is None else bytes(names.to(torch.uint8).flatten().tolist())
    return text.decode(errors="replace").split("\0")[:-1]
