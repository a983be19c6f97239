"""Every recipe on a GPU: the set on the device, the step in a CUDA graph, cold and warm times, several seeds.

    python -m benchmarks.speed.gpu [RECIPE ...] --data-dir DIR [--runs 5] [--record]
    python -m benchmarks.speed.gpu cifar10.fast --data-dir DIR --runs 50 --against airbench \\
        --airbench-python PYTHON

All runs of a recipe are trained in one process, which is told the seeds one by one. Its first run is the
*cold* one: everything counts, from the start of the process to the last forward pass of test-time
augmentation (TTA). *Warm* are the runs after it. Their clock runs from the first work on the training images
(whitening, where the network has it) to the last TTA forward; building the network and uploading the set are
outside, as is the evaluation without TTA. Rates that a recipe leaves open are found once, in the cold run.

With `--against airbench` each run has one of the package airbench 0.1.8 (`train94`) beside it, in turn, in a
process of its own Python, since that package wants torchvision. Its clock is its own: whitening, training
and TTA.

`--set KEY=VALUE` changes a setting of the recipe, as `firstlight train` does. `--toy` runs all of this at a
tiny size on whatever device is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import BENCHMARKS, parser, record
from benchmarks.speed import gpu_worker
from firstlight.errors import InputError, RunFailed
from firstlight.recipes import RECIPES, named

RESULTS = Path(__file__).with_suffix(".csv")
SHARED = ("hardware", "torch", "device", "precision", "threads", "recipe", "epochs", "rates", "step")
"""What all runs of a recipe have in common."""


class Worker:
    """A process that trains one seed whenever it is asked to."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        environment = {**os.environ, "STARTED": str(time.time())}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=pipe, stdout=pipe, text=True
        )

    def run(self, seed: int) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit(f"the process that trains ended with {process.wait()}; its message stands above")
        row: dict[str, Any] = json.loads(answer)
        return row

    def close(self) -> None:
        self._process.communicate()


def airbench_data(options: argparse.Namespace, folder: Path) -> None:
    """Write the set in the two files that airbench reads, uint8 N×H×W×C, so that it downloads nothing."""
    import torch

    recipe = named("cifar10.assignment")
    sets = (gpu_worker.toy(recipe) if options.toy else recipe).data.load(options.data_dir)
    (folder / "cifar10").mkdir()
    for name, images in zip(("train", "test"), sets, strict=True):
        pixels = images.images.permute(0, 2, 3, 1).contiguous()
        content = {"images": pixels, "labels": images.labels, "classes": list(images.classes)}
        torch.save(content, folder / "cifar10" / f"{name}.pt")


def measure(recipe: str, options: argparse.Namespace) -> None:
    """Train every seed of a recipe, each with one of the baseline behind it if asked, and record the rows.

    The last row holds the medians of the warm runs.
    """
    command = [sys.executable, "-m", gpu_worker.__name__, recipe]
    command += ["--device", options.device, "--precision", options.precision]
    command += [f"--{word}" for word in ("toy", "eager") if getattr(options, word)]
    command += [word for setting in options.settings for word in ("--set", setting)]
    if options.data_dir is not None:
        command += ["--data-dir", str(options.data_dir.resolve())]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as closing:
        ours, theirs = Worker(command, BENCHMARKS.parent), None
        closing.callback(ours.close)
        for number in range(options.runs):
            row = ours.run(options.seed + number)
            row["start"] = "warm" if number else "cold"
            if number:
                del row["cold_seconds"]
            if options.against:
                if theirs is None:
                    airbench_data(options, Path(temporary))
                    # Its Python has no Firstlight: the worker's file runs by its path.
                    command = [options.airbench_python, gpu_worker.__file__, options.against]
                    theirs = Worker(command, Path(temporary))
                    closing.callback(theirs.close)
                row |= theirs.run(options.seed + number)
            rows.append(row)
            record(__file__, None, options.results, keep=options.record, **row)
    if warm := rows[1:]:
        shared = {key: rows[0][key] for key in SHARED} | medians(warm)
        note = f"medians of {len(warm)} warm runs"
        record(__file__, None, options.results, keep=options.record, **shared, note=note)


def medians(warm: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the warm runs, and how many times as fast as the baseline they are."""
    ours = statistics.median(row["clock_seconds"] for row in warm)
    if "baseline" not in warm[0]:
        return {"clock_seconds": ours}
    theirs = statistics.median(row["baseline_clock_seconds"] for row in warm)
    baseline = {"baseline": warm[0]["baseline"], "baseline_clock_seconds": theirs}
    return {"clock_seconds": ours, **baseline, "ratio": theirs / ours}


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default all")
    options.add_argument("--data-dir", type=Path, help="the folder that holds CIFAR-10")
    options.add_argument("--runs", type=int, default=5, help="of each recipe; the first is the cold one")
    options.add_argument("--seed", type=int, default=0, help="the first seed")
    gpu_worker.add_options(options)
    options.add_argument("--against", choices=["airbench"], help="measure it in turn")
    options.add_argument("--airbench-python", default=sys.executable, help="a Python that has airbench")
    options.add_argument("--results", type=Path, default=RESULTS, help="the table that --record appends to")
    arguments = options.parse_args(words)
    if arguments.runs < 1:
        options.error("--runs must be at least 1")
    if arguments.toy and arguments.record and arguments.results == RESULTS:
        options.error("what a toy measures is no result: --record it into another file with --results")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    options = parsed(words)
    try:
        for recipe in options.recipes:
            named(recipe)  # or a wrong name would be found only after hours
        # A recipe for a person's own pictures has none here.
        for recipe in options.recipes or [name for name in RECIPES if named(name).data.facts()]:
            measure(recipe, options)
    except (InputError, RunFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
