"""What training did, epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace

from firstlight.errors import InputError


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    epoch: counted from 1. lr: the rate of its last step. train_loss, train_accuracy: running means over
    the epoch's augmented batches, as the weights changed. validation_* and test_*: of the weights at its
    end; None where not measured. Accuracies are fractions; seconds count training alone, from the start
    of the run; images_per_second is this epoch's.
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

    def with_test(self, scores: Iterable[tuple[float, float]]) -> History:
        """Return the history with the (loss, accuracy) of each epoch's snapshot on the test set."""
        pairs = zip(self.epochs, scores, strict=True)
        return History(tuple(replace(e, test_loss=loss, test_accuracy=acc) for e, (loss, acc) in pairs))

    def column(self, name: str) -> list[float | None]:
        """Return one field of every epoch."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def to_jsonl(self) -> str:
        return "".join(json.dumps(asdict(epoch)) + "\n" for epoch in self.epochs)

    @classmethod
    def from_jsonl(cls, text: str) -> History:
        """Read what `to_jsonl` wrote; InputError names the first line that is something else."""
        known = {field.name for field in fields(Epoch)}
        epochs = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
                epochs.append(Epoch(**{key: value for key, value in row.items() if key in known}))
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"line {number} of the history is not an epoch: {error}") from None
        return cls(tuple(epochs))
