"""Accuracy and seconds of `firstlight train FOLDER` on few pictures, from the prompt to the page.

    python -m benchmarks.own_images.cifar_folders --data-dir DATA --images 20 50
    python -m benchmarks.own_images.cifar_folders --data-dir DATA --all

CIFAR-10 is written as JPEG files enlarged to 224×224: so many training images a class, drawn from the 50,000
training images, and 2,000 of the 10,000 test images. Each draw is another set of both. The command is
what a person types, in a process of its own, with empty caches; decoding, features and page are in its
seconds. A run with `--held-out` draws its test images from the training images, for development. With
`--all` every image is written as a PNG file of its own size instead, once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from firstlight.data.cifar10 import Cifar10
from firstlight.data.images import ImageSet
from firstlight.machine.streams import stream

ROWS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    *("images_a_class", "draw", "recipe", "test_images", "accuracy", "seconds", "threads", "hardware"),
    "accuracy_tta",
)
SIDE, TEST = 224, 2000


def drawn(images: ImageSet, each: int, seed: int, purpose: str) -> torch.Tensor:
    """Return the indices of so many images of each class."""
    order = torch.randperm(len(images), generator=stream(seed, purpose))
    parts = [order[images.labels[order] == label][:each] for label in range(len(images.classes))]
    return torch.cat(parts)


def write(images: ImageSet, indices: torch.Tensor, root: Path, *, enlarged: bool = True) -> None:
    """Write images as enlarged JPEG files, or as PNG files of their size, in a folder for each class."""
    for index in indices.tolist():
        path = root / images.classes[int(images.labels[index])] / f"{index:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(images.images[index].permute(1, 2, 0).numpy())
        if enlarged:
            large = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.save(path.with_suffix(".jpg"), quality=90)
        else:
            image.save(path.with_suffix(".png"))


def measured(folder: Path, work: Path, recipe: str, words: list[str]) -> tuple[dict[str, object], float]:
    """Return the summary of a run from the shell, and the seconds from the prompt to the page."""
    out = work / "run"
    environment = {**os.environ, "FIRSTLIGHT_CACHE": str(work / "cache")}
    begun = time.perf_counter()
    what = [recipe, "--data-dir", str(folder)] if recipe else [str(folder)]
    command = [sys.executable, "-m", "firstlight", "train", *what, "--out", str(out), *words]
    subprocess.run(command, check=True, env=environment)
    seconds = time.perf_counter() - begun
    return json.loads((out / "summary.json").read_text(encoding="utf-8")), seconds


def main() -> None:
    """Measure every number of images and every draw, and add a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--test", type=int, default=TEST)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--all", action="store_true", help="all images, at their own size")
    parser.add_argument("--recipe", default="", help="by name; by default the folder alone is given")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("words", nargs="*", help="further words for `firstlight train`, behind --")
    options = parser.parse_args()
    train, test = Cifar10().load(options.data_dir)
    with tempfile.TemporaryDirectory() as name:
        if options.all:
            work = Path(name)
            for part, images in (("train", train), ("test", test)):
                write(images, torch.arange(len(images)), work / "photos" / part, enlarged=False)
            add_row(options, work, len(train) // 10, 0, len(test))
            return
    for each in options.images:
        for draw in range(options.draws):
            with tempfile.TemporaryDirectory() as name:
                work = Path(name)
                if options.held_out:
                    rows = drawn(train, each + options.test // 10, draw, "own images").view(10, -1)
                    write(train, rows[:, :each].flatten(), work / "photos" / "train")
                    write(train, rows[:, each:].flatten(), work / "photos" / "test")
                else:
                    write(train, drawn(train, each, draw, "own images"), work / "photos" / "train")
                    test_rows = drawn(test, options.test // 10, draw, "test images")
                    write(test, test_rows, work / "photos" / "test")
                add_row(options, work, each, draw, options.test)


def add_row(options: argparse.Namespace, work: Path, each: int, draw: int, tested: int) -> None:
    """Train on the photos, and add a row of what came out."""
    summary, seconds = measured(work / "photos", work, options.recipe, options.words)
    row = (
        *(each, draw, summary["recipe"], tested, summary["test_accuracy"], round(seconds, 1)),
        *(summary["threads"], summary["hardware"], summary.get("test_accuracy_tta")),
    )
    is_new = not options.rows.exists()
    with options.rows.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(row)
    print(*row, flush=True)


if __name__ == "__main__":
    main()
