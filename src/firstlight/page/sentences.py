"""What a page says in whole sentences: what a network confuses, how sure it is, and what to try next."""

from __future__ import annotations

from firstlight.insight.evaluation import Evaluation
from firstlight.recipe import Recipe
from firstlight.training.history import History

_WIDE_GAP, _NARROW_GAP = 0.04, 0.015
"""Training accuracy above test accuracy: above the first a run learns by heart, below the second not yet."""
_CALIBRATED = 0.02


def sentences(evaluation: Evaluation, history: History, recipe: Recipe) -> list[str]:
    """Say in three sentences what a network confuses, whether it knows when it is wrong, and what to try."""
    return [_confused(evaluation), _sure(evaluation), _to_try(evaluation, history, recipe)]


def _confused(evaluation: Evaluation) -> str:
    wrong, total = len(evaluation.mistakes), len(evaluation.labels)
    if not wrong:
        return f"It makes no mistake on these {total:,} images."
    names = evaluation.classes
    first, *more = evaluation.top_pairs(2)
    said = f"{names[first.true]} is taken for {names[first.predicted]} ({first.count:,} times)"
    for pair in more:
        said += f" and {names[pair.true]} for {names[pair.predicted]} ({pair.count:,})"
    share = sum(pair.count for pair in (first, *more)) / wrong
    there = [(score.recall, score.name) for score in evaluation.per_class if score.recall is not None]
    found, hardest = min(there)
    return (
        f"Of {total:,} images {wrong:,} are classified wrong. Most often {said}, together {share:.0%} of all "
        f"mistakes; hardest is {hardest}, of which {found:.0%} are found."
    )


def _sure(evaluation: Evaluation) -> str:
    """Compare confidence with accuracy, in all and where it is at least 90 %."""
    confidence = evaluation.probabilities.amax(1)
    sure = confidence >= 0.9
    count = int(sure.sum())
    right = int((evaluation.predictions == evaluation.labels)[sure].sum())
    gap = float(confidence.double().mean()) - evaluation.accuracy
    known = (
        f"where it is at least 90 % sure ({count:,} images) it is right {right / count:.1%} of the time"
        if count
        else ""
    )
    if abs(gap) < _CALIBRATED:
        judged = "Its confidence can be taken at its word"
    elif gap > 0:
        judged = f"It is too sure of itself, by {100 * gap:.1f} points on average"
    else:
        judged = f"It is more often right than it says, by {-100 * gap:.1f} points on average"
    return f"{judged}; {known}." if known else f"{judged}; it is never 90 % sure."


def _to_try(evaluation: Evaluation, history: History, recipe: Recipe) -> str:
    trained = history.epochs[-1].train_accuracy if len(history) else None
    if trained is None:
        return "How well it learned its training images is not known, so there is no advice on what to try."
    gap = trained - evaluation.accuracy
    if gap > _WIDE_GAP:
        return (
            f"It knows its training images better than new ones, {trained:.1%} against "
            f"{evaluation.accuracy:.1%}: "
            "more augmentation, label smoothing or weight decay should help more than a larger network."
        )
    if gap < _NARROW_GAP:
        longer = 2 * recipe.epochs
        return (
            f"It does hardly better on its training images ({trained:.1%}, augmented) than on new ones: "
            f"it has not learned all it could, so try more epochs (--epochs {longer}) or a wider network."
        )
    return (
        f"On its training images it reaches {trained:.1%}, {100 * gap:.1f} points more than on new ones, "
        "which is healthy: look at the images below for doubtful labels before you train longer."
    )
