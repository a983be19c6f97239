"""What the page's script reads: numbers as JSON, pictures as one sheet of tiles, heat as bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor
from torch.nn import functional as F

from firstlight.data.augment import Augmentation
from firstlight.figures.images import replay, said_of, settings_of
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import Heatmaps
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding

COLUMNS = 40
"""Tiles side by side in a sheet."""
MOST_BYTES = 6_500_000
"""Characters of a page's sheet of images; with the rest it stays below 8 MB, which can be mailed."""
MOST_LISTED = 5000
"""Mistakes that the page names; all of them are in mistakes.csv."""


def sheet(images: Tensor, columns: int = COLUMNS) -> str:
    """Return uint8 N×C×H×W images as one lossless picture, `columns` tiles wide, as a data URI."""
    count, _, height, width = images.shape
    colours = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    rows = max(1, math.ceil(count / columns))
    canvas = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for place, image in enumerate(colours.permute(0, 2, 3, 1).numpy()):
        top, left = place // columns * height, place % columns * width
        canvas[top : top + height, left : left + width] = image
    file = io.BytesIO()
    # WebP without loss is a quarter smaller than PNG; a side of it has at most 16,383 pixels.
    if features.check("webp") and max(canvas.shape[:2]) < 16384:
        Image.fromarray(canvas).save(file, "WEBP", lossless=True, quality=40, method=3)
        kind = "webp"
    else:
        Image.fromarray(canvas).save(file, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def sheet_within(images: Tensor, indices: Tensor, limit: int = MOST_BYTES) -> tuple[str, Tensor]:
    """Return the sheet of as many images as fit into `limit` characters, and their places in the test set.

    The images come in the order of their worth: the last are left out.
    """
    kept = len(images)
    while len(made := sheet(images[:kept])) > limit and kept:
        kept = int(0.97 * kept * limit / len(made))
    return made, indices[:kept]


def items(evaluation: Evaluation, names: dict[int, str], indices: Tensor | None) -> dict[str, list[Any]]:
    """List the mistakes, the highest loss first, and behind them the right answers that have a picture.

    indices: places in the test set of the tiles, None where the run keeps no pictures.
    """
    tiles = {} if indices is None else {index: tile for tile, index in enumerate(indices.tolist())}
    mistakes = evaluation.mistakes.tolist()[:MOST_LISTED]
    wrong = set(evaluation.mistakes.tolist())
    listed = mistakes + [index for index in tiles if index not in wrong]
    chosen = torch.tensor(listed, dtype=torch.int64)
    rows = evaluation.probabilities[chosen]
    top = rows.topk(min(3, rows.shape[1]), dim=1)
    return {
        "index": listed,
        "name": [names.get(index, "") for index in listed],
        "tile": [tiles.get(index, -1) for index in listed],
        "true": evaluation.labels[chosen].tolist(),
        "said": evaluation.predictions[chosen].tolist(),
        "loss": _rounded(evaluation.losses[chosen], 4),
        "truth": _rounded(rows.gather(1, evaluation.labels[chosen][:, None]).squeeze(1), 4),
        "top": top.indices.tolist(),
        "sure": [_rounded(row, 4) for row in top.values],
    }


def heat(predicted: Heatmaps, true: Heatmaps) -> dict[str, Any]:
    """Return both maps of each image in bytes, on the native grid; a pair shares one scale.

    bytes: for each image the map for the predicted, then that for the true class; 255 is the strongest
    evidence in the pair.
    """
    pairs = torch.stack([predicted.maps, true.maps], 1)
    strongest = pairs.flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    values = (255 * pairs / strongest.view(-1, 1, 1, 1)).round().to(torch.uint8)
    return {
        "endpoint": predicted.endpoint,
        "grid": list(pairs.shape[2:]),
        "count": len(pairs),
        "bytes": base64.b64encode(values.numpy().tobytes()).decode(),
    }


def curves(history: History, schedule: Any) -> dict[str, Any]:
    """Return accuracy and loss of each part of the data by epoch, and the rate over the schedule."""
    series = []
    for part in ("train", "validation", "test"):
        accuracy, loss = (history.column(f"{part}_{what}") for what in ("accuracy", "loss"))
        if any(value is not None for value in accuracy):
            series.append({"name": part, "accuracy": _finite(accuracy), "loss": _finite(loss)})
    epochs = [epoch.epoch for epoch in history]
    if schedule is None:
        rates = {"x": epochs, "y": [epoch.lr for epoch in history]}
    else:
        last = history.epochs[-1]
        per_epoch = last.step / last.epoch
        steps = np.unique(np.linspace(0, last.step - 1, min(last.step, 241)).round().astype(int)).tolist()
        rates = {
            "x": [round((step + 1) / per_epoch, 3) for step in steps],
            "y": [schedule(step) for step in steps],
        }
    return {"epochs": epochs, "series": series, "rates": rates}


def finder(finding: LRFinding) -> dict[str, Any]:
    """Return the curve of a range test with the two rates."""
    return {
        "rates": list(finding.rates),
        "losses": _finite(finding.losses),
        "smoothed": _finite(finding.smoothed),
        "min": finding.min_lr,
        "peak": finding.peak_lr,
    }


def film(
    samples: Mapping[str, Tensor],
    augmentations: Sequence[Augmentation],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the replayed steps of some training images: one sheet, and what was drawn in words.

    samples: as `pictures.augmentations` takes them. The sheet has a row for each step.
    """
    steps = replay(samples, augmentations, mean, std)
    high, wide = (max(step.shape[side] for step in steps) for side in (2, 3))
    padded = [F.pad(step, (0, wide - step.shape[3], 0, high - step.shape[2])) for step in steps]
    rows = [
        {"name": "Original", "settings": "", "captions": [classes[k] for k in samples["labels"].tolist()]}
    ]
    for place, augmentation in enumerate(augmentations):
        drawn = [said_of(augmentation, row) for row in samples[f"draws_{place}"]]
        name = type(augmentation).__name__
        rows.append({"name": name, "settings": ", ".join(settings_of(augmentation)), "captions": drawn})
    columns = len(samples["images"])
    return {"uri": sheet(torch.cat(padded), columns), "steps": rows, "columns": columns}


def _rounded(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """JSON knows no NaN; what was not measured or was not finite is null."""
    return [value if value is not None and math.isfinite(value) else None for value in values]
