"""How long does a training take alone, and beside a second one on the same cores?

    python -m benchmarks.speed.beside [--epochs N] [--width N] [--rounds N] [--record]

The demo by `firstlight train` in processes of its own, fp32, without its page's seconds: the seconds of
training that the run itself measured. In turn: alone, with threads that spin while they wait, as OpenMP
does by itself; alone, as Firstlight sets it; two at once, as Firstlight sets it; with `--spinning` also two
at once with threads that spin. Each round gives one row: medians over rounds are for the reader.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import parser, record

SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""What libgomp does by itself where no variable tells it how to wait."""


def seconds(count: int, epochs: int, width: int, environment: dict[str, str]) -> list[float]:
    """Train `count` demos at once, and return the seconds that each of them trained."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    words = f"train shapes.demo --epochs {epochs} --device cpu --precision fp32 --set width={width}"
    rates = "--set peak_lr=0.05 --set min_lr=0.001 --set train=2000 --set test=100 --set validation=0"
    with tempfile.TemporaryDirectory(prefix="firstlight-beside-") as folder:
        runs = [Path(folder, f"run-{number}") for number in range(count)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "firstlight", *words.split(), *rates.split(), "--out", str(run)],
                env={**clean, **environment},
                stdout=subprocess.DEVNULL,
            )
            for run in runs
        ]
        if any([process.wait() for process in processes]):
            raise SystemExit("a demo failed")
        summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs]
    return [float(summary["train_seconds"]) for summary in summaries]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--width", type=int, default=4)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--spinning", action="store_true", help="measure two spinning ones too: very slow")
    arguments = options.parse_args()
    size = arguments.epochs, arguments.width
    before: list[float] = []
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(arguments.rounds):
        before += seconds(1, *size, SPINNING)
        alone += seconds(1, *size, {})
        beside.append(max(seconds(2, *size, {})))
        print(f"spinning {before[-1]:.2f} s, alone {alone[-1]:.2f} s, slower of two {beside[-1]:.2f} s")
    spinning = max(seconds(2, *size, SPINNING)) if arguments.spinning else None

    from firstlight.machine.machine import choose

    record(
        __file__,
        choose("cpu", "fp32"),
        keep=arguments.record,
        epochs=arguments.epochs,
        width=arguments.width,
        rounds=arguments.rounds,
        spinning_seconds=round(median(before), 3),
        alone_seconds=round(median(alone), 3),
        beside_seconds=round(median(beside), 3),
        alone_ratio=round(median(alone) / median(before), 3),
        beside_ratio=round(median(beside) / median(alone), 3),
        beside_spinning_ratio=None if spinning is None else round(spinning / median(before), 3),
    )


if __name__ == "__main__":
    main()
