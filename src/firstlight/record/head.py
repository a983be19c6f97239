"""What a run folder keeps of a fitted head, beside its weights: head.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from firstlight.errors import InputError
from firstlight.record.run_folder import RunFolder
from firstlight.training.head import HeadFit, Point
from firstlight.training.tuning import Rehearsal

HEAD = "head.json"


@dataclass(frozen=True)
class HeadFacts:
    """What cross-validation on the training images said; see `HeadFit`.

    accuracy: of held-out training images, as a fraction, at the chosen strength, before any tuning.
    """

    strength: float
    accuracy: float
    mirror: bool
    mirror_accuracies: tuple[float, float] | None
    curve: tuple[Point, ...]
    tuning: Rehearsal | None = None


def write_head(folder: RunFolder, fit: HeadFit, tuning: Rehearsal | None = None) -> None:
    """Keep what cross-validation said, and held-out images of tuning where blocks were tuned."""
    folder.write_json(
        HEAD,
        {
            "strength": fit.strength,
            "accuracy": fit.accuracies[fit.strength],
            "mirror": fit.mirror,
            "mirror_accuracies": fit.mirror_accuracies and list(fit.mirror_accuracies),
            "curve": [[point.images, point.accuracy] for point in fit.curve],
            "tuning": tuning and dataclasses.asdict(tuning),
        },
    )


def read_head(folder: RunFolder) -> HeadFacts | None:
    """Return what `write_head` wrote, None where there is nothing; InputError where it is something else."""
    if not folder.has(HEAD):
        return None
    values: dict[str, Any] = folder.read_json(HEAD)
    try:
        pair, tuning = values["mirror_accuracies"], values.get("tuning")  # older folders have none
        return HeadFacts(
            float(values["strength"]),
            float(values["accuracy"]),
            bool(values["mirror"]),
            None if pair is None else (float(pair[0]), float(pair[1])),
            tuple(Point(int(images), float(accuracy)) for images, accuracy in values["curve"]),
            tuning and Rehearsal(float(tuning["before"]), float(tuning["after"]), bool(tuning["better"])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder.path / HEAD} is damaged: {error}") from None
