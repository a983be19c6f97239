"""What a page says in sentences: which classes are confused, how good the confidence is, what to try next."""

from __future__ import annotations

from firstlight.insight.evaluation import Evaluation
from firstlight.recipe import Recipe
from firstlight.record.head import HeadFacts
from firstlight.training.head import advice
from firstlight.training.history import History

_OVERFIT, _UNDERFIT = 0.04, 0.015
"""Training less test accuracy: above the first is overfitting, below the second underfitting."""
_CALIBRATED = 0.02
"""Below it, confidence less accuracy on average, and the expected calibration error, are small."""


def sentences(
    evaluation: Evaluation,
    history: History,
    recipe: Recipe,
    head: HeadFacts | None = None,
    label_errors: int = 0,
) -> list[str]:
    """Return what is confused, whether the confidence can be trusted, and what to try next.

    head: of a run of frozen features, with the estimated number of label errors in its training set.
    """
    if head is not None:
        last = _next_steps(evaluation, head, label_errors)
        return [_confusion(evaluation), _confidence(evaluation), last]
    return [_confusion(evaluation), _confidence(evaluation), _advice(evaluation, history, recipe)]


def _confusion(evaluation: Evaluation) -> str:
    wrong, total, names = len(evaluation.mistakes), len(evaluation.labels), evaluation.classes
    if not wrong:
        return f"All {total:,} test images are classified right."
    pairs = evaluation.top_pairs(2)
    words = " and ".join(f"{names[pair.true]} as {names[pair.predicted]} ({pair.count:,})" for pair in pairs)
    share = sum(pair.count for pair in pairs) / wrong
    scores = [(score.recall, score.name) for score in evaluation.per_class if score.recall is not None]
    recall, hardest = min(scores)
    return (
        f"{wrong:,} of {total:,} test images are classified wrong. Most frequent: {words}, together"
        f" {share:.0%} of all mistakes. Hardest class: {hardest}, with a recall of {recall:.0%}."
    )


def _confidence(evaluation: Evaluation) -> str:
    """Compare confidence with accuracy, over all images and where it is at least 90 %."""
    confidence = evaluation.probabilities.amax(1)
    gap, error = float(confidence.double().mean()) - evaluation.accuracy, evaluation.calibration().error
    if abs(gap) < _CALIBRATED:
        verdict = "Well calibrated" if error < _CALIBRATED else "Well calibrated on average"
    else:
        verdict = (
            f"{'Overconfident' if gap > 0 else 'Underconfident'} by {100 * abs(gap):.1f} points on average"
        )
    sure = confidence >= 0.9
    right, count = int((evaluation.predictions == evaluation.labels)[sure].sum()), int(sure.sum())
    above = (
        f"Of the {count:,} images with a confidence of 90% or more, {right / count:.1%} are right."
        if count
        else "No image has a confidence of 90% or more."
    )
    return f"{verdict}: expected calibration error {error:.1%}. {above}"


def _advice(evaluation: Evaluation, history: History, recipe: Recipe) -> str:
    trained = history.epochs[-1].train_accuracy if len(history) else None
    if trained is None:
        return "The training accuracy is not known, so there is no advice on what to try next."
    both = f"Training accuracy {trained:.1%} (on augmented images), test accuracy {evaluation.accuracy:.1%}"
    if trained - evaluation.accuracy > _OVERFIT:
        return (
            f"{both}: overfitting. Try more augmentation, label smoothing or weight decay, no larger network."
        )
    if trained - evaluation.accuracy < _UNDERFIT:
        return f"{both}: underfitting. Try more epochs (--epochs {2 * recipe.epochs}) or a wider network."
    return f"{both}: a healthy gap. Check the label errors below before you train longer."


def _next_steps(evaluation: Evaluation, head: HeadFacts, label_errors: int) -> str:
    """Return what to do next, in three sentences: labels, photos, and the pair to photograph."""
    labels = (
        f"Look first at the most doubtful training labels below: about {label_errors:,} may be wrong."
        if label_errors
        else "No training label is likely wrong; look at the most doubtful ones below all the same."
    )
    pairs = evaluation.top_pairs(1)
    pair = (
        f"The pair that gains most is {evaluation.classes[pairs[0].true]} and "
        f"{evaluation.classes[pairs[0].predicted]}: add photos that show what tells them apart."
        if pairs
        else "No pair of classes is confused: add harder photos to the test."
    )
    return f"{labels} {advice(head.curve)} {pair}"
