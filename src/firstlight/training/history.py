"""The history of a training: its losses, accuracies and speed, epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from firstlight.errors import InputError


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    epoch: counted from 1. step: steps so far. lr: learning rate of its last step.
    train_loss, train_accuracy: means over the epoch's augmented batches, while the weights changed.
    images_per_second: of this epoch. train_seconds: training time from the start of the run.
    validation_*, test_*: of the weights at its end; None where not measured. Accuracies are fractions.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    images_per_second: float
    train_seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class History:
    """The epochs of a run, oldest first."""

    epochs: tuple[Epoch, ...] = ()

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    def with_epoch(self, epoch: Epoch) -> History:
        return History((*self.epochs, epoch))

    def with_test(self, scores: Iterable[tuple[float, float] | None]) -> History:
        """Return the history with each epoch's (loss, accuracy) on the test set, None where not measured."""
        return History(
            tuple(
                epoch if score is None else replace(epoch, test_loss=score[0], test_accuracy=score[1])
                for epoch, score in zip(self.epochs, scores, strict=True)
            )
        )

    def column(self, name: str) -> list[float | None]:
        """Return a field of every epoch."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(epoch) for epoch in self.epochs]

    @classmethod
    def from_json(cls, rows: Iterable[Any]) -> History:
        """Read what `to_json` returned; InputError names the first row that is something else."""
        names = {field.name for field in fields(Epoch)}
        epochs = []
        for number, row in enumerate(rows, 1):
            try:
                epochs.append(Epoch(**{key: value for key, value in row.items() if key in names}))
            except (TypeError, AttributeError) as error:
                raise InputError(f"row {number} of the history is not an epoch: {error}") from None
        return cls(tuple(epochs))

    def to_jsonl(self) -> str:
        return "".join(json.dumps(row) + "\n" for row in self.to_json())

    @classmethod
    def from_jsonl(cls, text: str) -> History:
        """Read what `to_jsonl` wrote."""
        try:
            return cls.from_json([json.loads(line) for line in text.splitlines()])
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the history is not JSON lines: {error}") from None
