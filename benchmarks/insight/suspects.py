"""Label errors: how many of the images that are ranked first are truly mislabelled, ours and cleanlab's.

    make bench SCRIPT=benchmarks/insight/suspects.py     # in an environment with cleanlab
    python -m benchmarks.insight.suspects --set cifar --errors network --share 0.02 --keep FOLDER --record

A share of the labels of a training set is wrong. `random`: replaced by another class, drawn by the seed.
`network`: some of those that another, weaker network predicts wrongly get its prediction; it was trained on
other, rightly labelled images. Every image is judged by a network that was not trained on it, and all
rankings read the same probabilities. As many images are looked at as labels are wrong: precision is the share
of them whose label is. Another seed is other labels and other networks, and for `shapes` another set.

`shapes`: cross-fitted as by `firstlight suspects`; the weaker network is half as wide, and was trained for 12
epochs on 2,000 images. `cifar`: a linear layer on the frozen features of 5,000 training images of CIFAR-10 at
128 px, cross-fitted as by `folder.transfer`; the weaker one is a layer that was fitted to 200 other images.

Features and probabilities are kept in --keep, and what is there is not computed again.
cleanlab 2.9 is under the Apache License 2.0 (up to 2.7 it was under the AGPL); it is used here alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import parser, read_rows, record
from firstlight.data.cifar10 import Cifar10
from firstlight.data.images import ImageSet
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError
from firstlight.insight.evaluation import evaluate
from firstlight.insight.suspects import Suspects, suspects
from firstlight.jobs.job import Job
from firstlight.jobs.suspects import out_of_sample, trained
from firstlight.machine.machine import choose
from firstlight.machine.streams import stream
from firstlight.models.efficientnet_lite import EfficientNetLite
from firstlight.recipe import Recipe
from firstlight.recipes import named
from firstlight.training.head import LogisticHead, fit_logistic

OURS = "firstlight"
SHARE, FOLDS = 0.05, 4
CIFAR_IMAGES, WEAK_POOL, WEAK_CIFAR = 5000, 4000, 200
WEAK_SHAPES, WEAK_EPOCHS = 2000, 12
COUNTS = "cleanlab find_label_issues by self_confidence"
KEYS = ("labels", "true", "probabilities")
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


@dataclasses.dataclass(frozen=True)
class Score:
    """How good one ranking is. count: the wrong labels that it estimates, where it does."""

    precision: float
    average_precision: float
    count: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Labels, int64, N, the true ones, and out-of-sample probabilities, N×K."""

    labels: Tensor
    true: Tensor
    probabilities: Tensor


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
    if not number:
        return Score(0.0, 0.0, count)
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


def confused(true: Tensor, predictions: Tensor, share: float, seed: int) -> Tensor:
    """Return labels of which so large a share is what another network predicts, wrongly."""
    candidates = torch.nonzero(predictions != true).flatten()
    number = round(share * len(true))
    if number > len(candidates):
        raise InputError(f"{number} labels should be wrong, but only {len(candidates)} predictions are")
    chosen = candidates[torch.randperm(len(candidates), generator=stream(seed, "wrong labels"))[:number]]
    labels = true.clone()
    labels[chosen] = predictions[chosen]
    return labels


def shapes_judged(recipe: Recipe, count: int, errors: str, share: float) -> Judged:
    """Cross-fit one set of shapes with wrong labels."""
    clean, _ = Shapes(train=count, test=1, seed=recipe.seed).load()
    images, machine = with_wrong_labels(clean, share, recipe.seed), choose()
    if errors == "network":
        other, _ = Shapes(train=WEAK_SHAPES, test=1, seed=recipe.seed + 1000).load()
        weaker = recipe.over(WEAK_EPOCHS).replace(width=max(1, recipe.width // 2), seed=recipe.seed + 1000)
        job = Job.with_images(other, clean, weaker, machine)
        predictions = evaluate(trained(job, quiet=True), job.test, machine).probabilities.argmax(1)
        labels = confused(clean.labels, predictions, share, recipe.seed)
        images = dataclasses.replace(clean, labels=labels)
    return Judged(images.labels, clean.labels, out_of_sample(recipe, images, machine, folds=FOLDS))


def cifar_features(keep: Path | None) -> tuple[Tensor, Tensor]:
    """Return features, fp32, N×D, and labels of training images of CIFAR-10, the same ones every time."""
    file = None if keep is None else keep / "cifar-features.safetensors"
    if file is not None and file.exists():
        kept = load_file(file)
        return kept["features"], kept["labels"]
    images, _ = Cifar10().load(None)
    chosen = torch.randperm(len(images), generator=stream(0, "subset"))[: CIFAR_IMAGES + WEAK_POOL]
    network = EfficientNetLite(10, min_side=0)
    network.take_weights()
    folded, rows = network.folded(choose().dtype), []
    with torch.inference_mode():
        for part in chosen.split(32):
            pixels = images.images[part].float()
            pixels = F.interpolate(pixels, size=(128, 128), mode="bicubic", antialias=True).clamp(0, 255)
            batch = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
            rows.append(folded.features_of_view(batch.to(choose().dtype)).float())
    features, labels = torch.cat(rows), images.labels[chosen]
    if file is not None:
        save_file({"features": features, "labels": labels}, file)
    return features, labels


def cifar_judged(features: Tensor, true: Tensor, seed: int, errors: str, share: float) -> Judged:
    """Cross-fit a linear layer on features whose labels are partly wrong."""
    rows, clean = features[:CIFAR_IMAGES], true[:CIFAR_IMAGES]
    if errors == "network":
        pool = torch.randperm(len(true) - CIFAR_IMAGES, generator=stream(seed, "weak"))[:WEAK_CIFAR]
        fit = fit_logistic(features[CIFAR_IMAGES:][pool], true[CIFAR_IMAGES:][pool], 10, 1.0)
        labels = confused(clean, F.linear(rows, *fit).argmax(1), share, seed)
    else:
        generator = stream(seed, "wrong labels")
        chosen = torch.randperm(len(clean), generator=generator)[: round(share * len(clean))]
        labels = clean.clone()
        labels[chosen] += torch.randint(1, 10, (len(chosen),), generator=generator)
        labels %= 10
    fit = LogisticHead(flip="off")(rows[None], labels, 10, seed)
    return Judged(labels, clean, fit.probabilities)


def kept(file: Path | None, judge: Callable[[], Judged]) -> Judged:
    """Return what a file holds, or what `judge` returns, which is written there."""
    if file is None or not file.exists():
        judged = judge()
        if file is not None:
            save_file({key: getattr(judged, key).contiguous() for key in KEYS}, file)
        return judged
    tensors = load_file(file)
    return Judged(*(tensors[key] for key in KEYS))


def scored(judged: Judged, name: str) -> tuple[dict[str, Score], Suspects]:
    """Score every ranking on the same probabilities."""
    labels, probabilities, wrong = judged.labels, judged.probabilities, judged.labels != judged.true
    right = float((probabilities.argmax(1) == judged.true).double().mean())
    print(
        f"{name}: {int(wrong.sum())} of {len(labels):,} labels are wrong; "
        f"the networks are right about {right:.1%} of the images"
    )
    ours = suspects(labels, probabilities)
    rankings = {OURS: (ours.order, ours.count), **cleanlab_rankings(labels, probabilities)}
    return {key: score(order, wrong, count) for key, (order, count) in rankings.items()}, ours


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
    options.add_argument("--set", choices=("shapes", "cifar"), default="shapes")
    options.add_argument("--errors", choices=("random", "network", "none"), default="random")
    options.add_argument("--share", type=float, default=SHARE, help="of the labels that are wrong")
    options.add_argument("--keep", type=Path, help="a folder for features and probabilities")
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
    errors, share, keep = arguments.errors, arguments.share, arguments.keep
    if errors == "none":
        share = 0.0
    machine, baseline = choose(), f"cleanlab {metadata.version('cleanlab')}"
    if arguments.set == "shapes":
        note = f"{arguments.images} images, {FOLDS} folds, "
        note += f"width {arguments.width}, batch size {arguments.batch_size}"
        same = {"recipe": recipe.name, "epochs": recipe.epochs}
    else:
        note = f"{CIFAR_IMAGES} images, frozen features at 128 px, 5 folds"
        same = {"recipe": "folder.transfer", "epochs": 0}
    same |= {"note": note, "baseline": baseline, "images": arguments.set, "errors": errors, "share": share}
    rows = []
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        setting = {key: str(value) for key, value in {**same, "seed": seed}.items()}
        path = Path(__file__).with_suffix(".csv")
        if arguments.record and any(setting.items() <= row.items() for row in read_rows(path)):
            print(f"seed {seed}: recorded already")
            continue
        file = None if keep is None else keep / f"{arguments.set}-{errors}-{share:g}-{seed}.safetensors"
        judge = (
            partial(shapes_judged, recipe.replace(seed=seed), arguments.images, errors, share)
            if arguments.set == "shapes"
            else lambda seed=seed: cifar_judged(*cifar_features(keep), seed, errors, share)
        )
        seeded, ours = scored(kept(file, judge), f"seed {seed}")
        for ranking, each in seeded.items():
            low, high = ours.interval if ranking == OURS else (None, None)
            figures = {
                "precision_at_wrong": round(each.precision, 4),
                "average_precision": round(each.average_precision, 4),
                "estimated_wrong": each.count,
                "estimated_low": low,
                "estimated_high": high,
            }
            rows.append({"seed": seed, "ranking": ranking, **figures})
            if arguments.record:
                record(__file__, machine, **same, **rows[-1])
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()
