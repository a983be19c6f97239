"""Label errors: how many of the images that are ranked first are truly mislabelled, ours and cleanlab's.

    make bench SCRIPT=benchmarks/insight/suspects.py     # in an environment with cleanlab

A share of the labels of a training set of `shapes` is replaced by another class, drawn from the seed. Every
image is judged by a network that was not trained on it, by the same cross-fitting as `firstlight suspects`,
and all rankings read the same probabilities. As many images are looked at as labels were replaced: precision
is the share of them whose label was. Another seed is another set, other labels and other networks.

cleanlab 2.9 is under the Apache License 2.0 (up to 2.7 it was under the AGPL); it is used here alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import parser, record
from firstlight.data.images import ImageSet
from firstlight.data.shapes import Shapes
from firstlight.insight.suspects import suspects
from firstlight.jobs.suspects import out_of_sample
from firstlight.machine.machine import choose
from firstlight.machine.streams import stream
from firstlight.recipe import Recipe
from firstlight.recipes import named

OURS = "firstlight"
SHARE, FOLDS = 0.05, 4
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


@dataclasses.dataclass(frozen=True)
class Score:
    """How good one ranking is. count: the wrong labels that it estimates, where it does."""

    precision: float
    average_precision: float
    count: int | None


def with_wrong_labels(images: ImageSet, share: float, seed: int) -> ImageSet:
    """Return the set with so large a share of its labels replaced, each by any other class."""
    generator, classes = stream(seed, "wrong labels"), len(images.classes)
    indices = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    labels = images.labels.clone()
    labels[indices] += torch.randint(1, classes, (len(indices),), generator=generator)
    return dataclasses.replace(images, labels=labels % classes)


def score(order: Tensor, wrong: Tensor, count: int | None = None) -> Score:
    """Score a ranking, the likeliest error first; what a shorter one leaves out counts as missed."""
    hits, number = wrong[order].double(), int(wrong.sum())
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return Score(float(hits[:number].sum()) / number, float((precision * hits).sum()) / number, count)


def cleanlab_rankings(labels: Tensor, probabilities: Tensor) -> dict[str, tuple[Tensor, int | None]]:
    """Return cleanlab's rankings: its scores on all images, and the issues that it lists, by each score."""
    # Imported here, so that the rest can be tried without it.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    # In fp64 and summing to 1, as it asks for.
    rows = probabilities.double()
    arrays = labels.numpy(), (rows / rows.sum(1, keepdim=True)).numpy()
    rankings: dict[str, tuple[Tensor, int | None]] = {}
    for method in METHODS:
        for adjust in (False, True):
            if adjust and method == "confidence_weighted_entropy":
                continue  # which cleanlab does not offer
            quality = get_label_quality_scores(*arrays, method=method, adjust_pred_probs=adjust)
            name = f"cleanlab {method}{', adjusted' if adjust else ''}"
            rankings[name] = torch.from_numpy(quality).argsort(stable=True), None
    for method in METHODS:
        issues = find_label_issues(*arrays, return_indices_ranked_by=method, n_jobs=1)
        rankings[f"cleanlab find_label_issues by {method}"] = torch.from_numpy(issues.copy()), len(issues)
    return rankings


def scores(recipe: Recipe, count: int) -> dict[str, Score]:
    """Cross-fit one set with wrong labels, and score every ranking on the same probabilities."""
    clean, _ = Shapes(train=count, test=1, seed=recipe.seed).load()
    images = with_wrong_labels(clean, SHARE, recipe.seed)
    wrong = images.labels != clean.labels
    probabilities = out_of_sample(recipe, images, choose(), folds=FOLDS)
    right = float((probabilities.argmax(1) == clean.labels).double().mean())
    print(
        f"seed {recipe.seed}: {int(wrong.sum())} of {count:,} labels are wrong; "
        f"the networks are right about {right:.1%} of the images"
    )
    ours = suspects(images.labels, probabilities)
    rankings = {OURS: (ours.order, ours.count), **cleanlab_rankings(images.labels, probabilities)}
    return {name: score(order, wrong, count) for name, (order, count) in rankings.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write one line per ranking, the mean of its rows, as a Markdown table."""
    lines = [
        "| ranking | n | precision at the number flipped | average precision | wrong labels, estimated |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["ranking"] for row in rows):
        runs = [row for row in rows if row["ranking"] == name]
        precision, average, estimate = (
            statistics.mean(float(run[key]) for run in runs) if runs[0][key] not in ("", None) else None
            for key in ("precision_at_wrong", "average_precision", "estimated_wrong")
        )
        count = "" if estimate is None else f"{estimate:.0f}"
        lines.append(f"| {name} | {len(runs)} | {precision:.3f} | {average:.3f} | {count} |")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=5000)
    options.add_argument("--epochs", type=int, default=24)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--seed", type=int, default=0, help="the first seed")
    options.add_argument("--seeds", type=int, default=1, help="how many")
    arguments = options.parse_args()

    size = {"width": arguments.width, "batch_size": arguments.batch_size}
    recipe = named("shapes.demo").over(arguments.epochs)
    recipe = recipe.replace(peak_lr=0.2, min_lr=0.002, validation=0, **size)
    rows = []
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        seeded = scores(recipe.replace(seed=seed), arguments.images)
        for ranking, each in seeded.items():
            figures = {
                "precision_at_wrong": round(each.precision, 4),
                "average_precision": round(each.average_precision, 4),
                "estimated_wrong": each.count,
            }
            rows.append({"seed": seed, "ranking": ranking, **figures})
    print(table(rows))
    if arguments.record:
        machine, baseline = choose(), f"cleanlab {metadata.version('cleanlab')}"
        note = f"{arguments.images} images, {SHARE:.0%} of labels wrong, {FOLDS} folds, "
        note += f"width {arguments.width}, batch size {arguments.batch_size}"
        same = {"recipe": recipe.name, "epochs": recipe.epochs, "baseline": baseline, "note": note}
        for row in rows:
            record(__file__, machine, **same, **row)


if __name__ == "__main__":
    main()
