"""A run folder with everything a page can show, made without training, its names as hostile as can be."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import random_images

from firstlight.data.images import ImageSet
from firstlight.insight.evaluation import Evaluation
from firstlight.machine.streams import seeded
from firstlight.recipes import named
from firstlight.record.record import Record
from firstlight.record.run_folder import RunFolder
from firstlight.record.summary import Summary
from firstlight.training.history import Epoch, History
from firstlight.training.lr_finder import LRFinding

EVIL = "<img src=x onerror=alert(1)>"
SUMMARY = Summary(
    test_accuracy=0.9314,
    test_accuracy_tta=0.9402,
    test_interval_95=(0.9263, 0.9362),
    parameters=6573120,
    train_seconds=3420.0,
    wall_seconds=4000.0,
    peak_lr=0.4,
    min_lr=0.0018,
    date="2026-01-01",
)
ENVIRONMENT = {
    "hardware": "Some CPU, 2 cores",
    "precision": "bf16",
    "threads": 2,
    "firstlight": "0.1.0",
    "torch": "2.9.0",
    "command": f"firstlight train shapes.demo --set 'x={EVIL}'",
}
COUNT = 400


def epoch(n: int) -> Epoch:
    return Epoch(n, 5 * n, 0.1 / n, 2.0 / n, 0.3 * n, 100.0, 3.0 * n, None, None, 2.1 / n, 0.28 * n)


def make_run(path: Path) -> Evaluation:
    """Fill a folder and return the answers of its network, which are drawn at random."""
    recipe = named("shapes.demo").over(3).replace(width=2)
    facts = recipe.data.facts()
    assert facts is not None
    classes = (EVIL, '"quoted" & </script><script>alert(2)</script>', *facts.classes[2:])
    draw = torch.Generator().manual_seed(0)
    labels, mean, std = torch.arange(COUNT) % len(classes), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    names = [f"photos/{EVIL}/\"{index}'.png" for index in range(COUNT)]
    images = ImageSet(random_images(COUNT, 3, 32, 32), labels, classes, mean, std, names)
    scores = torch.randn(COUNT, len(classes), generator=draw)
    scores[torch.arange(COUNT), labels] += 1.5
    plain, averaged = (Evaluation(classes, labels, scores.softmax(1), names, tta) for tta in (False, True))
    samples = {"images": images.images[:3], "labels": labels[:3]}
    for number, part in enumerate(recipe.augment):
        samples[f"draws_{number}"] = part.sample(torch.arange(3), 32, 32, lambda _: draw, 0)
    data = {"classes": classes, "shape": [3, 32, 32], "mean": images.mean, "std": images.std}
    rates, losses, smoothed = (0.1, 0.2, 0.4), (2.0, 1.0, 2.5), (2.0, 1.1, 2.4)
    finding = LRFinding(rates, losses, smoothed, 0.2, 0.1, "so", f"so {EVIL}", 165.0)
    record = Record(RunFolder(path))
    record.begin(recipe, finding, {**ENVIRONMENT, "data": data}, samples)
    record.write_history(History(tuple(map(epoch, (1, 2, 3)))))
    record.write_evaluation(plain, averaged, images)
    record.write_summary(SUMMARY)
    with seeded(0, "weights"):
        record.write_model(recipe.model(len(classes), 3))
    return plain
