"""The sections of a page as its templates and scripts read them: numbers for JSON, images as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.errors import InputError
from firstlight.figures.augmentations import Step, replay
from firstlight.figures.images import HEAT
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import gradcam_pair
from firstlight.insight.suspects import suspects
from firstlight.models.network import for_inference
from firstlight.record.record import KEPT_MISTAKES, Record
from firstlight.record.values import attempted
from firstlight.training.head import Point
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

COLUMNS = 40
"""Tiles side by side in a sheet."""
MOST_BYTES = 6_500_000
"""Characters of a page's sheet of images; with the rest it stays below 8 MB, which can be mailed."""
_LARGE = 3 * 64 * 64
"""Pixel values of an image above which it is large: a photo."""
_MOST_PHOTOS = 240
"""Photos in a page's sheet; the maps of more would take longer than the test."""
MOST_LISTED = 5000
"""Mistakes that the page lists; all of them are in mistakes.csv."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network answers on the test images.

    items: by name, a value an image: the mistakes, the highest loss first, then right answers with an image.
    sheet: the images as one picture, where there are any; indices: of its tiles in the test set.
    suspects: positions of items, the most doubtful label first; suspect_count: wrong labels, estimated, and
        its 95 % interval.
    """

    evaluation: Evaluation
    items: Mapping[str, list[Any]]
    sheet: str | None
    indices: Tensor
    suspects: list[int]
    suspect_count: int
    suspect_interval: tuple[int, int]

    def extent(self) -> str:
        """Say which images the page has and which it leaves out."""
        wrong, right = len(self.evaluation.mistakes), self.evaluation.right
        listed = min(wrong, MOST_LISTED)
        with_image = sum(tile >= 0 for tile in self.items["tile"][:listed])
        words = (
            f"All {wrong:,} mistakes" if listed == wrong else f"The {listed:,} worst of {wrong:,} mistakes"
        )
        words += " are here"
        if with_image < listed:
            words += f", {with_image:,} with an image" if with_image else ", without images"
        compared = len(self.items["tile"]) - listed
        return f"{words}, and {compared:,} of {right:,} right answers to compare them with."


def answers(
    evaluation: Evaluation | None, names: Mapping[int, str], images: tuple[Tensor, Tensor] | None
) -> Answers | None:
    """Return the answers with as many images as a page may hold; None where the run was not evaluated.

    names: of test images, by index. images: as `Record.kept_images`.
    """
    if evaluation is None:
        return None
    sheet, indices = (None, torch.zeros(0, dtype=torch.int64)) if images is None else sheet_within(*images)
    items = _items(evaluation, names, indices)
    ranking = suspects(evaluation.labels, evaluation.probabilities)
    # The estimate may be small, so a few more of the ranking are shown, where prediction and label differ.
    wrong = (evaluation.predictions != evaluation.labels)[ranking.order]
    doubtful = ranking.order[wrong][: shown_suspects(ranking.count)].tolist()
    position = {index: number for number, index in enumerate(items["index"])}
    shown = [position[index] for index in doubtful if index in position]
    return Answers(evaluation, items, sheet, indices, shown, ranking.count, ranking.interval)


def shown_suspects(estimated: int) -> int:
    """Return how many labels are shown where so many are estimated to be wrong."""
    return min(max(estimated, 24), 60)


def _items(evaluation: Evaluation, names: Mapping[int, str], indices: Tensor) -> dict[str, list[Any]]:
    """List the mistakes, the highest loss first, and behind them the right answers that have a tile.

    indices: of the tiles' images in the test set.
    """
    tiles = {index: tile for tile, index in enumerate(indices.tolist())}
    mistakes = evaluation.mistakes.tolist()
    chosen = mistakes[:MOST_LISTED] + [index for index in tiles if index not in set(mistakes)]
    rows = torch.tensor(chosen, dtype=torch.int64)
    probabilities, labels = evaluation.probabilities[rows], evaluation.labels[rows]
    top = probabilities.topk(min(3, probabilities.shape[1]), dim=1)
    return {
        "index": chosen,
        "name": [names.get(index, "") for index in chosen],
        "tile": [tiles.get(index, -1) for index in chosen],
        "true": labels.tolist(),
        "predicted": evaluation.predictions[rows].tolist(),
        "loss": _rounded(evaluation.losses[rows]),
        "trueProbability": _rounded(probabilities.gather(1, labels[:, None]).squeeze(1)),
        "top": top.indices.tolist(),
        "confidence": [_rounded(row) for row in top.values],
    }


def sheet(images: Tensor, columns: int = COLUMNS) -> str:
    """Return uint8 N×C×H×W images as one picture, `columns` tiles wide, as a data URI; small without loss."""
    count, _, height, width = images.shape
    colours = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    rows = max(1, math.ceil(count / columns))
    canvas = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for number, image in enumerate(colours.permute(0, 2, 3, 1).numpy()):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + height, left : left + width] = image
    file = io.BytesIO()
    # WebP without loss is a quarter smaller than PNG; a side of it has at most 16,383 pixels.
    if features.check("webp") and max(canvas.shape[:2]) < 16384:
        # Photos would be eight times as large without loss, and take seconds to compress.
        how = {"quality": 90, "method": 2} if _are_photos(images) else {"quality": 40, "method": 3}
        Image.fromarray(canvas).save(file, "WEBP", lossless=not _are_photos(images), **how)
        kind = "webp"
    else:
        Image.fromarray(canvas).save(file, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def _are_photos(images: Tensor) -> bool:
    return images[:1].numel() > _LARGE


def sheet_within(images: Tensor, indices: Tensor, limit: int = MOST_BYTES) -> tuple[str, Tensor]:
    """Return the sheet of as many images as fit into `limit` characters, and their indices.

    The images come in the order of their worth: the last are left out.
    """
    count = min(len(images), _MOST_PHOTOS if _are_photos(images) else len(images))
    while len(uri := sheet(images[:count])) > limit and count:
        count = int(0.97 * count * limit / len(uri))
    return uri, indices[:count]


def whole(pictures: Mapping[int, bytes], answers: Answers) -> list[str]:
    """Return the whole picture of each listed image, JPEG in base64, "" where there is none."""
    return [base64.b64encode(pictures.get(index, b"")).decode() for index in answers.items["index"]]


def heat(record: Record, answers: Answers | None) -> dict[str, Any] | None:
    """Return Grad-CAM of the mistakes that have an image, for the predicted and for the true class.

    bytes: both maps of each image on their native grid; 255 is the strongest evidence in the pair.
    """
    kept = record.kept_images
    if answers is None or kept is None:
        return None
    evaluation, data = answers.evaluation, record.data
    worst = evaluation.mistakes[: min(len(answers.indices), KEPT_MISTAKES)]
    if not len(worst) or not torch.equal(answers.indices[: len(worst)], worst):
        raise InputError("this run keeps no images of mistakes")
    inputs = normalise(kept[0][: len(worst)], data.mean, data.std)
    # Photos take seconds; the copy of a network with a frozen body has the same layers.
    model = record.model if record.recipe.head is None else for_inference(record.model)
    classes = evaluation.predictions[worst], evaluation.labels[worst]
    pair = attempted(lambda: gradcam_pair(model, inputs, *classes), "the network does not fit its images")
    maps = torch.stack([heatmaps.maps for heatmaps in pair], 1)
    strongest = maps.flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    values = (255 * maps / strongest.view(-1, 1, 1, 1)).round().to(torch.uint8)
    return {
        "endpoint": pair[0].endpoint,
        "grid": list(maps.shape[2:]),
        "count": len(maps),
        "bytes": base64.b64encode(values.numpy().tobytes()).decode(),
    }


def heat_colours() -> list[list[int]]:
    """Return the 256 colours of evidence, from none to the strongest, as in the figures."""
    colours: list[list[int]] = (255 * HEAT(np.arange(256))[:, :3]).round().astype(int).tolist()
    return colours


def curves(history: History, schedule: Callable[[int], float] | None) -> dict[str, Any]:
    """Return accuracy and loss of each part of the data by epoch, and the rate over the schedule."""
    series = []
    for part in ("train", "validation", "test"):
        accuracy, loss = (_finite(history.column(f"{part}_{quantity}")) for quantity in ("accuracy", "loss"))
        if any(value is not None for value in accuracy):
            series.append({"name": part, "accuracy": accuracy, "loss": loss})
    epochs = [epoch.epoch for epoch in history]
    if schedule is None:
        return {"epochs": epochs, "series": series, "rates": {"x": epochs, "y": history.column("lr")}}
    last = history.epochs[-1]
    steps = np.unique(np.linspace(0, last.step - 1, min(last.step, 241)).round().astype(int)).tolist()
    places = [round((step + 1) * last.epoch / last.step, 3) for step in steps]
    return {"epochs": epochs, "series": series, "rates": {"x": places, "y": list(map(schedule, steps))}}


def curve_points(curve: Sequence[Point], width: int, height: int) -> list[tuple[float, float]]:
    """Return the places of a learning curve's points in a picture: images on a logarithmic scale.

    The accuracies fill the height from 0 at the bottom to 1 at the top.
    """
    first, last = math.log(max(curve[0].images, 1)), math.log(max(curve[-1].images, 1))
    return [
        (
            round(width * (math.log(max(each.images, 1)) - first) / max(last - first, 1e-9), 1),
            round(height * (1 - each.accuracy), 1),
        )
        for each in curve
    ]


def finder(finding: LRFinding) -> dict[str, Any]:
    """Return what a finder measured, with the two rates."""
    losses, smoothed = _finite(finding.losses), _finite(finding.smoothed)
    marks = {"min": finding.min_lr, "peak": finding.peak_lr}
    return {
        "rates": finding.rates,
        "losses": losses,
        "smoothed": smoothed,
        "raced": finding.method == "race",
        **marks,
    }


def film(record: Record) -> list[Step]:
    """Return the replayed augmentation of some training images; nothing where the run keeps none."""
    if record.samples is None:
        return []
    data = record.data
    samples, augment = record.samples, record.recipe.augment
    return attempted(
        lambda: replay(samples, augment, data.mean, data.std, data.classes),
        "the draws do not fit the augmentations",
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """JSON knows no NaN; what was not measured or was not finite is null."""
    return [value if value is not None and math.isfinite(value) else None for value in values]
