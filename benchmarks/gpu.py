"""Every recipe on a GPU: the set on the device, the step in a CUDA graph, cold and warm times, several seeds.

    python benchmarks/gpu.py [RECIPE ...] --data-dir DIR [--runs 5] [--record]
    python benchmarks/gpu.py cifar10.fast --data-dir DIR --runs 50 --against airbench --airbench-python PYTHON
    python benchmarks/gpu.py --split PARTS --data-dir DIR    # where files above 60 MB cannot be brought
    python benchmarks/gpu.py --data-dir PARTS                # joins them by itself; --joined DIR only joins

All runs of a recipe are trained in one process, which is told the seeds one by one. Its first run is the
*cold* one: everything counts, from the start of the process to the last forward pass of test-time
augmentation (TTA). *Warm* are the runs after it. Their clock runs from the first work on the training images
(whitening, where the network has it) to the last TTA forward; building the network and uploading the set are
outside, as is the evaluation without TTA. Rates that a recipe leaves open are found once, in the cold run.

With `--against airbench` each run has one of the package airbench 0.1.8 (`train94`) beside it, in turn, in a
process of its own Python, since that package wants torchvision. Its clock is its own: whitening, training
and TTA.

`--toy` runs all of this at a tiny size on whatever device is there. The CUDA graph itself has not been run
yet, since no CUDA machine was at hand; see captured.py.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import parts
from gpu_worker import toy
from rows import RESULTS, add_row

from firstlight.errors import InputError, RunFailed
from firstlight.insight.intervals import Spread

WORKER = Path(__file__).resolve().with_name("gpu_worker.py")


class Worker:
    """A process that trains one seed whenever it is asked to."""

    def __init__(self, python: str, *words: str, folder: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER), *words],
            env={**os.environ, "STARTED": str(time.time())},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, seed: int) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit(f"the process that trains ended with {process.wait()}; what it said stands above")
        found = json.loads(answer)
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        self._process.communicate()


def airbench_data(options: argparse.Namespace, folder: Path) -> None:
    """Write the set in the two files that airbench reads, uint8 N×H×W×C, so that it downloads nothing."""
    import torch

    from firstlight.recipes import named

    recipe = named("cifar10.assignment")
    sets = (toy(recipe) if options.toy else recipe).data.load(options.data_dir)
    (folder / "cifar10").mkdir()
    for name, images in zip(("train", "test"), sets, strict=True):
        pixels = images.images.permute(0, 2, 3, 1).contiguous()
        kept = {"images": pixels, "labels": images.labels, "classes": list(images.classes)}
        torch.save(kept, folder / "cifar10" / f"{name}.pt")


def measure(recipe: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train every seed of a recipe, each with one of the baseline behind it if asked; return the rows."""
    words = [recipe, "--device", options.device, "--precision", options.precision]
    words += [f"--{word}" for word in ("toy", "eager", "compile") if getattr(options, word)]
    if options.data_dir is not None:
        words += ["--data-dir", str(Path(options.data_dir).resolve())]
    rows = []
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as closing:
        if options.against:
            airbench_data(options, Path(place))
        ours, theirs = Worker(sys.executable, *words), None
        closing.callback(ours.close)
        for number in range(options.runs):
            row = ours.run(options.seed + number)
            row["start"] = "warm" if number else "cold"
            if number:
                del row["cold_seconds"]
            if options.against:
                if theirs is None:
                    theirs = Worker(options.airbench_python, options.against, folder=Path(place))
                    closing.callback(theirs.close)
                row |= theirs.run(options.seed + number)
            rows.append(row)
            beside = f"; airbench {row['baseline_clock_seconds']:.2f} s" if options.against else ""
            print(
                f"{recipe}, seed {row['seed']}, {row['start']}: {row['clock_seconds']:.2f} s, "
                f"{row['test_accuracy']:.2%} without TTA, {row['test_accuracy_tta']:.2%} with TTA{beside}",
                flush=True,
            )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the warm runs, and how many times as fast as the baseline they are."""
    warm = [row for row in rows if row["start"] == "warm"]
    if not warm:
        return {}
    found: dict[str, Any] = {"clock_seconds": statistics.median(row["clock_seconds"] for row in warm)}
    if "baseline" in warm[0]:
        theirs = statistics.median(row["baseline_clock_seconds"] for row in warm)
        found |= {
            "baseline": warm[0]["baseline"],
            "baseline_clock_seconds": theirs,
            "ratio": theirs / found["clock_seconds"],
        }
    return found


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """Say what the runs of one recipe come to, in a few lines."""

    def accuracy(key: str) -> str:
        spread = Spread(tuple(row[key] for row in rows))
        if spread.interval is None:
            return f"{spread.mean:.2%}"
        low, high = max(0.0, spread.interval[0]), min(1.0, spread.interval[1])
        return f"{spread.mean:.2%} (sd {spread.sd:.2%}, 95 % interval of the mean {low:.2%} to {high:.2%})"

    first, found = rows[0], summary(rows)
    lines = [
        f"{first['recipe']} on {first['hardware']}, {first['precision']}, {first['step']}; n = {len(rows)}",
        f"  without TTA {accuracy('test_accuracy')}",
        f"  with TTA    {accuracy('test_accuracy_tta')}",
        f"  cold        {first['cold_seconds']:.2f} s, from the start of the process",
    ]
    if found:
        warm = [row["clock_seconds"] for row in rows if row["start"] == "warm"]
        lines.append(f"  warm        {found['clock_seconds']:.3f} s ({min(warm):.3f} to {max(warm):.3f})")
    if "ratio" in found:
        lines.append(
            f"  {found['baseline']}: {found['baseline_clock_seconds']:.3f} s, with TTA "
            f"{accuracy('baseline_test_accuracy_tta')}; Firstlight is {found['ratio']:.2f} times as fast"
        )
    return "\n".join(lines)


def record(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Append a row for every run, and one with the medians of the warm ones."""
    same = {"script": "benchmarks/gpu.py", "date": datetime.now(UTC).date().isoformat()}
    for row in rows:
        add_row({**same, **row}, path)
    if found := summary(rows):
        keys = ("hardware", "torch", "precision", "threads", "device", "recipe", "epochs", "rates", "step")
        shared = {key: rows[0][key] for key in keys}
        add_row({**same, **shared, **found, "note": f"medians of {len(rows) - 1} warm runs"}, path)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default all")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10, or the pieces it was cut into")
    parser.add_argument("--runs", type=int, default=5, help="of each recipe; the first is the cold one")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    parser.add_argument("--compile", action="store_true", help="compile the network as well")
    parser.add_argument("--against", choices=["airbench"], help="measure it in turn")
    parser.add_argument("--airbench-python", default=sys.executable, help="a Python that has airbench")
    parser.add_argument("--record", action="store_true", help="append rows to --results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--toy", action="store_true", help="the whole way at a tiny size, to test it")
    parser.add_argument("--split", type=Path, metavar="DIR", help="only cut --data-dir into pieces in DIR")
    parser.add_argument("--joined", type=Path, metavar="DIR", help="only join the pieces again, in DIR")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if (options.split or options.joined) and options.data_dir is None:
        parser.error("--split and --joined need --data-dir")
    if options.toy and options.record and options.results == RESULTS:
        parser.error("what a toy measures is no result: --record it into another file with --results")
    return options


def whole_data(options: argparse.Namespace) -> Path | None:
    """Return the folder with the data, joined in the cache where only its pieces were given."""
    from firstlight.machine.storage import cache_folder

    place: Path | None = options.data_dir
    if place is None or not parts.is_cut(place):
        return place
    return parts.joined(place, cache_folder() / "joined")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    try:
        if options.split or options.joined:
            if options.split:
                for piece in parts.split(options.data_dir, options.split):
                    print(piece)
            else:
                print(parts.joined(options.data_dir, options.joined))
            return
        from firstlight.recipes import RECIPES, named

        options.data_dir = whole_data(options)
        for recipe in options.recipes:
            named(recipe)  # or a wrong name would be found only after hours
        for recipe in options.recipes or RECIPES:
            rows = measure(recipe, options)
            print(f"\n{describe(rows)}\n", flush=True)
            if options.record:
                record(rows, options.results)
    except (InputError, RunFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
