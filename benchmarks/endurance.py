"""How long does nothing break? Fuzzing of every reader, and cycles of work, for a time that is given.

    python -m benchmarks.endurance fuzz [--minutes N] [--reader NAME]… [--record]
    python -m benchmarks.endurance soak [--minutes N] [--record]

`fuzz` gives each reader an equal share of the minutes, which are those of a processor. `soak` trains, reports, predicts in one process, over
and over, kills and resumes a run now and then, and watches memory, open files, threads and temporary files.
Each adds rows to endurance.csv, whose sum is the running tally. Ends with code 1 where something broke.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz_readers import NAMES
from benchmarks.measure import BENCHMARKS, parser, record

FINDINGS = BENCHMARKS.parent / "findings"
GROWTH_MB = 64
"""Growth of memory after the first tenth of the cycles that counts as none."""


def fuzz(minutes: float, keep: bool, names: Sequence[str]) -> bool:
    """Fuzz readers; return whether nothing was found."""
    whole = True
    for name in names:
        seconds = max(1.0, 60 * minutes / len(names))
        words = [sys.executable, "-m", "benchmarks.fuzz_readers", name, str(seconds), str(FINDINGS)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", cwd=BENCHMARKS.parent)
        text = done.stdout + done.stderr
        executions, coverage = re.findall(r'"executions": (\d+)', text), re.findall(r"cov: (\d+)", text)
        whole &= done.returncode == 0
        if done.returncode:
            print("\n".join(text.splitlines()[-25:]))
        record(
            __file__,
            None,
            keep=keep,
            what="fuzz",
            name=name,
            minutes=round(seconds / 60, 2),
            count=int(executions[-1]) if executions else 0,
            coverage=int(coverage[-1]) if coverage else None,
            failures=int(done.returncode != 0),
        )
    return whole


def _state() -> dict[str, float]:
    """Return what must stay flat."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    memory = re.search(r"VmRSS:\s+(\d+)", status)
    return {
        "memory_mb": int(memory[1]) / 1024 if memory else 0.0,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary_files": len(os.listdir(tempfile.gettempdir())),
    }


TRAIN = (
    *("train", "shapes.demo", "--epochs", "2", "--device", "cpu", "--precision", "fp32"),
    *("--checkpoint-minutes", "0", "--resume"),
    *(word for each in ("train=240", "test=60", "width=2", "batch_size=20") for word in ("--set", each)),
    *(word for each in ("validation=20", "peak_lr=0.05", "min_lr=0.001") for word in ("--set", each)),
)


def soak(minutes: float, keep: bool) -> bool:
    """Repeat train, report, predict in this process; kill and resume a run in every fifth cycle."""
    import firstlight

    settings = {"train": 240, "test": 60, "width": 2, "batch_size": 20, "validation": 20, "epochs": 2}
    options = {"peak_lr": 0.05, "min_lr": 0.001, "device": "cpu", "precision": "fp32", "quiet": True}
    end = time.monotonic() + 60 * minutes
    states, kills, same, reference = [], 0, True, None
    with tempfile.TemporaryDirectory(prefix="firstlight-soak-") as place:
        cycle = 0
        while time.monotonic() < end or cycle < 2:
            out = Path(place, f"run-{cycle}")
            run = firstlight.train("shapes.demo", out=out, **settings, **options)
            run.report()
            run.predict(out / "figures" / "confusion.png")
            bits = (out / "predictions.safetensors").read_bytes()
            reference = reference or bits
            same &= bits == reference
            if cycle % 5 == 0:
                kills += _killed(Path(place, "killed"), 0.5 + (cycle * 0.37) % 4)
                same &= Path(place, "killed", "predictions.safetensors").read_bytes() == reference
                subprocess.run(["rm", "-rf", str(Path(place, "killed"))], check=True)
            subprocess.run(["rm", "-rf", str(out)], check=True)
            states.append(_state())
            cycle += 1
    first, last = states[max(1, len(states) // 10)], states[-1]
    growth = {key: round(last[key] - first[key], 1) for key in first}
    flat = growth["memory_mb"] < GROWTH_MB and growth["handles"] <= 0 and growth["threads"] <= 0
    record(
        __file__,
        None,
        keep=keep,
        what="soak",
        name="train, report, predict; kill, resume",
        minutes=minutes,
        count=cycle,
        failures=int(not (same and flat)),
        kills=kills,
        same_bits=same,
        **{f"growth_{key}": value for key, value in growth.items()},
    )
    return same and flat


def _killed(out: Path, delay: float) -> int:
    """Start a run, kill it after a while, resume it to its end; return whether it was killed at work."""
    words = [sys.executable, "-m", "firstlight", *TRAIN, "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(2.0 + delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        killed = int(process.wait() != 0)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return killed


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=("fuzz", "soak"))
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--reader", choices=NAMES, action="append", help="to fuzz; all by default")
    arguments = options.parse_args()
    if arguments.what == "fuzz":
        works = fuzz(arguments.minutes, arguments.record, arguments.reader or NAMES)
    else:
        works = soak(arguments.minutes, arguments.record)
    print(json.dumps({"broke": not works}))
    sys.exit(0 if works else 1)


if __name__ == "__main__":
    main()
