"""What a run folder keeps of a fitted head, beside its weights: head.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firstlight.errors import InputError
from firstlight.record.run_folder import RunFolder
from firstlight.training.head import HeadFit, Point

HEAD = "head.json"


@dataclass(frozen=True)
class HeadFacts:
    """What cross-validation on the training images said; see `HeadFit`.

    accuracy: of held-out training images, as a fraction, at the chosen strength.
    """

    strength: float
    accuracy: float
    mirror: bool
    mirror_accuracies: tuple[float, float] | None
    curve: tuple[Point, ...]


def write_head(folder: RunFolder, fit: HeadFit) -> None:
    """Keep what cross-validation said."""
    folder.write_json(
        HEAD,
        {
            "strength": fit.strength,
            "accuracy": fit.accuracies[fit.strength],
            "mirror": fit.mirror,
            "mirror_accuracies": fit.mirror_accuracies and list(fit.mirror_accuracies),
            "curve": [[point.images, point.accuracy] for point in fit.curve],
        },
    )


def read_head(folder: RunFolder) -> HeadFacts | None:
    """Return what `write_head` wrote, None where there is nothing; InputError where it is something else."""
    if not folder.has(HEAD):
        return None
    values: dict[str, Any] = folder.read_json(HEAD)
    try:
        pair = values["mirror_accuracies"]
        return HeadFacts(
            float(values["strength"]),
            float(values["accuracy"]),
            bool(values["mirror"]),
            None if pair is None else (float(pair[0]), float(pair[1])),
            tuple(Point(int(images), float(accuracy)) for images, accuracy in values["curve"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder.path / HEAD} is damaged: {error}") from None
