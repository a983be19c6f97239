"""Our input pipeline against the course's own: images a second, and the share of a training step.

The course augments image by image with albumentations in a DataLoader with two workers; Firstlight
augments a whole batch at once in the training process. Both pad by 4, crop 32×32, flip, cut out 8×8
filled with the mean, normalise, and deliver batches of 512. They run in turn (A B A B …), and the
medians are compared. The training step is the assignment's, in the precision that is fastest here.

    make bench        # makes an environment with albumentations 2.0.8 first
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network at import otherwise

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from rows import add_row
from torch.utils.data import DataLoader, Dataset

from firstlight.data.batches import Batches
from firstlight.data.images import ImageSet
from firstlight.data.images import statistics as pixel_statistics
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.recipes import named
from firstlight.training.loop import TrainState, train_step
from firstlight.training.objective import Objective

WORKERS = 2


class PerImage(Dataset[tuple[torch.Tensor, int]]):
    """The course's data set: one image at a time through albumentations."""

    def __init__(self, images: ImageSet) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        fill = tuple(round(255 * mean) for mean in images.mean)
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.CoarseDropout(
                    num_holes_range=(1, 1), hole_height_range=(8, 8), hole_width_range=(8, 8), fill=fill, p=1
                ),
                A.Normalize(images.mean, images.std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(image=self.pixels[index])["image"], self.labels[index]


def timed(epoch: Callable[[], int]) -> float:
    """Return images a second of one pass; workers are started in it, as in every epoch of the course."""
    start = time.perf_counter()
    images = epoch()
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="append a row to results.csv")
    arguments = parser.parse_args()

    recipe = named("cifar10.assignment")
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (arguments.images, 3, 32, 32), dtype=np.uint8)
    )
    labels = torch.arange(arguments.images) % 10
    classes = tuple(map(str, range(10)))
    images = ImageSet(pixels, labels, classes, *pixel_statistics(pixels), range(arguments.images))
    machine = choose()

    ours = Batches(images, recipe.batch_size, recipe.augment, seed=0, machine=machine)
    course = DataLoader(
        PerImage(images), recipe.batch_size, shuffle=True, num_workers=WORKERS, drop_last=True
    )

    with seeded(0, "weights"):
        state = TrainState.create(recipe.model(10), recipe.optimizer, machine)
    batch = next(ours.epoch(0))
    steps = []
    for _ in range(4):
        start = time.perf_counter()
        train_step(state, *batch, 0.01, Objective(), machine)
        machine.synchronise()
        steps.append(time.perf_counter() - start)
    step = statistics.median(steps[1:])

    speeds: dict[str, list[float]] = {"ours": [], "course": []}
    for _ in range(arguments.rounds):
        speeds["ours"].append(timed(lambda: sum(len(labels) for _, labels in ours.epoch(0))))
        speeds["course"].append(timed(lambda: sum(len(labels) for _, labels in course)))
    fast, slow = (statistics.median(speeds[name]) for name in ("ours", "course"))
    share = recipe.batch_size / fast / step
    print(
        f"on {machine.hardware}, torch {torch.__version__}, albumentations {A.__version__}, {WORKERS} workers"
    )
    print(f"ours    {fast:10,.0f} images/s   (each round: {', '.join(f'{s:,.0f}' for s in speeds['ours'])})")
    print(
        f"course  {slow:10,.0f} images/s   (each round: {', '.join(f'{s:,.0f}' for s in speeds['course'])})"
    )
    print(f"ratio   {fast / slow:10.1f}")
    print(f"share of a training step of {step:.2f} s ({machine.precision}): {share:.2%}")
    if arguments.record:
        add_row(
            {
                "script": "benchmarks/input_pipeline.py",
                "date": datetime.now(UTC).date().isoformat(),
                "hardware": machine.hardware,
                "torch": torch.__version__,
                "precision": machine.precision,
                "threads": machine.threads,
                "images_per_second": round(fast),
                "baseline": f"albumentations {A.__version__} in a DataLoader with {WORKERS} workers",
                "baseline_images_per_second": round(slow),
                "ratio": round(fast / slow, 1),
                "step_share": round(share, 5),
            }
        )


if __name__ == "__main__":
    main()
