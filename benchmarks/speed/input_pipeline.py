"""Our input pipeline against the course's own: images a second, and the share of a training step.

    make bench SCRIPT=benchmarks/speed/input_pipeline.py     # in an environment with albumentations 2.0.8

The course augments image by image with albumentations in a DataLoader with two workers; Firstlight
augments a whole batch at once in the training process. Both pad by 4, crop 32×32, flip, cut out 8×8
filled with the mean, normalise, and deliver batches of 512. They run in turn (A B A B …), and the
medians are compared. The training step is the assignment's, in the precision that is fastest here.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import assignment_step, parser, random_images, record, seconds_in_turn
from firstlight.data.batches import Batches
from firstlight.data.images import ImageSet
from firstlight.machine.machine import choose
from firstlight.recipes import named

WORKERS = 2


class PerImage(Dataset[tuple[torch.Tensor, int]]):
    """The course's data set: one image at a time through albumentations."""

    def __init__(self, images: ImageSet) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        fill = tuple(round(255 * mean) for mean in images.mean)
        hole = {"num_holes_range": (1, 1), "hole_height_range": (8, 8), "hole_width_range": (8, 8)}
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.CoarseDropout(**hole, fill=fill, p=1),
                A.Normalize(images.mean, images.std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(image=self.pixels[index])["image"], self.labels[index]


def consume(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=50_000)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network at import otherwise
    from albumentations import __version__ as version

    recipe, machine, images = named("cifar10.assignment"), choose(), random_images(arguments.images)
    size = recipe.batch_size
    ours = Batches(images, size, recipe.augment, seed=0, machine=machine)
    course = DataLoader(PerImage(images), size, shuffle=True, num_workers=WORKERS, drop_last=True)
    step = {"step": assignment_step(machine)}
    step_seconds = statistics.median(seconds_in_turn(step, 3, wait=machine.synchronise)["step"])

    # Workers are started in each pass, as in every epoch of the course.
    passes = {"ours": lambda: consume(ours.epoch(0)), "course": lambda: consume(course)}
    seconds = seconds_in_turn(passes, arguments.rounds)
    count = size * len(ours)
    fast, slow = (count / statistics.median(times) for times in seconds.values())
    record(
        __file__,
        machine,
        keep=arguments.record,
        images_per_second=round(fast),
        baseline=f"albumentations {version} in a DataLoader with {WORKERS} workers",
        baseline_images_per_second=round(slow),
        ratio=round(fast / slow, 1),
        step_share=round(size / fast / step_seconds, 5),
    )


if __name__ == "__main__":
    main()
