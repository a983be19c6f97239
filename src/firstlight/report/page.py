"""A run folder as one HTML file that can be mailed: no script, no request to any network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from firstlight.record import contents
from firstlight.record.folder import RunFolder
from firstlight.report.checklist import Line
from firstlight.report.progress import duration

SECTIONS = (
    (
        "learning_curves",
        "Learning curves",
        "The training curve is a running mean over augmented images. The test "
        "curve was scored after training, from a snapshot of each epoch; it chose nothing.",
    ),
    ("lr_finder", "How the learning rates were found", "One step at each rate, on a copy of the network."),
    ("augmentations", "Augmentation", "Real draws of the first epoch, replayed from the seed."),
    ("confusion", "What it confuses", "Rows are true classes, columns what was predicted."),
    (
        "misclassified",
        "Misclassified images",
        "Under each image: the prediction with its confidence, and the truth.",
    ),
    (
        "gradcam",
        "Grad-CAM",
        "Where the network found evidence for its prediction, and where for the truth "
        "(Selvaraju et al. 2017).",
    ),
)


def write_page(
    folder: RunFolder,
    pictures: Mapping[str, bytes],
    missing: Mapping[str, str],
    summary: Mapping[str, Any],
    environment: Mapping[str, Any],
    recipe: Mapping[str, Any],
    lines: Sequence[Line],
) -> Path:
    """Write report.html into the run folder and return its path.

    pictures: PNG files by name. missing: for each picture that could not be drawn, why.
    """
    templates = Environment(
        loader=PackageLoader("firstlight.report", "assets"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters["duration"] = duration
    sections = [
        {
            "title": title,
            "words": words,
            "picture": base64.b64encode(pictures[name]).decode() if name in pictures else None,
            "missing": missing.get(name, "not drawn"),
        }
        for name, title, words in SECTIONS
    ]
    page = templates.get_template("page.html").render(
        run=folder.path.name,
        summary=summary,
        environment=environment,
        recipe=recipe,
        sections=sections,
        lines=lines,
    )
    folder.write(contents.REPORT, page)
    return folder.path / contents.REPORT
