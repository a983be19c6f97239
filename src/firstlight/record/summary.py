"""`Summary`: the numbers of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What came out of a run; None where it was not measured.

    Accuracies are fractions, on the test set; test_accuracy_tta with test-time augmentation, in tta_seconds.
    test_interval_95: the interval of test_accuracy, over the images. train_loss, train_accuracy: running
    means of the last epoch. peak_lr, min_lr: the rates in use, after `halvings` because
    training diverged. kept_epoch: whose weights were kept.
    train_seconds: of training alone; wall_seconds: from the first line to the last picture.
    """

    recipe: str | None = None
    seed: int | None = None
    epochs: int | None = None
    interrupted: bool | None = None
    test_accuracy: float | None = None
    test_accuracy_tta: float | None = None
    test_interval_95: tuple[float, float] | None = None
    test_loss: float | None = None
    train_accuracy: float | None = None
    train_loss: float | None = None
    validation_accuracy: float | None = None
    kept_epoch: int | None = None
    peak_lr: float | None = None
    min_lr: float | None = None
    halvings: int | None = None
    train_seconds: float | None = None
    tta_seconds: float | None = None
    wall_seconds: float | None = None
    checkpoint_seconds: float | None = None
    checkpoint_bytes: float | None = None
    parameters: int | None = None
    device: str | None = None
    hardware: str | None = None
    threads: int | None = None
    precision: str | None = None
    torch: str | None = None
    date: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """Read what `to_json` gave; a value of another kind, or beyond all sense, counts as not measured."""
        fields = {f.name: _as(str(f.type), values.get(f.name)) for f in dataclasses.fields(cls)}
        for name, value in fields.items():
            ends = value if isinstance(value, tuple) else (value,)
            if isinstance(ends[0], (int, float)) and not all(0 <= end <= _most(name) for end in ends):
                fields[name] = None
        return cls(**fields)


_MOST = 1e15
"""No number of a run is as large: bytes, seconds, parameters."""


def _most(name: str) -> float:
    return 1.0 if "accuracy" in name or "interval" in name else _MOST


def _as(kind: str, value: Any) -> Any:
    """Return a value as one of the types above, None where it is of another."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
    match kind.removesuffix(" | None"):
        case "str":
            return value if isinstance(value, str) else None
        case "bool":
            return value if isinstance(value, bool) else None
        case "int":
            return int(value) if number else None
        case "float":
            return float(value) if number else None
        case _:
            pair = list(value) if isinstance(value, (list, tuple)) else []
            ends = [_as("float", end) for end in pair]
            return tuple(ends) if len(ends) == 2 and None not in ends else None
