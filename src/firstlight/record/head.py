"""What a run folder keeps of a fitted head, beside its weights: head.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from firstlight.errors import printable
from firstlight.record.run_folder import RunFolder
from firstlight.record.values import MOST_COUNT, read
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


@dataclass(frozen=True)
class _Kept:
    strength: float
    accuracy: float
    mirror: bool
    mirror_accuracies: tuple[float, float] | None
    curve: tuple[tuple[float, float], ...]


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
    values, where = folder.read_json(HEAD), printable(folder.path / HEAD)
    share = dict.fromkeys(("accuracy", "mirror_accuracies", "before", "after"), (0.0, 1.0))
    kept = read(_Kept, values, where, {**share, "strength": (0, 1e300), "curve": (0, MOST_COUNT)})
    tuning = values.get("tuning")  # folders of an earlier version have none
    return HeadFacts(
        kept.strength,
        kept.accuracy,
        kept.mirror,
        kept.mirror_accuracies,
        tuple(Point(int(images), accuracy) for images, accuracy in kept.curve),
        None if tuning is None else read(Rehearsal, tuning, f"{where}: tuning", share),
    )
