"""How long does nothing break? Fuzzing of every reader, and cycles of work, for a time that is given.

    python -m benchmarks.endurance fuzz [--minutes N] [--reader NAME]… [--record]
    python -m benchmarks.endurance soak [--minutes N] [--record]

`fuzz` gives each reader an equal share of the minutes, which are those of a processor. `soak` trains,
reports, predicts and serves in one process, over and over, and watches memory, open files, threads and
temporary files. Between two cycles it kills another run at any moment, one from scratch or by transfer, and
resumes it. Each adds rows to endurance.csv, whose sum is the running tally. Ends with code 1 where something
broke.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz_readers import NAMES
from benchmarks.measure import BENCHMARKS, parser, record

if TYPE_CHECKING:
    from firstlight.serve.guard import Bucket
    from firstlight.serve.network import Network

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


RUNS = {
    "shapes.demo": (
        *("shapes.demo", "--epochs", "2", "--precision", "fp32"),
        *(f"--set={each}" for each in ("train=240", "test=60", "width=2", "batch_size=20", "validation=20")),
        *("--set=peak_lr=0.05", "--set=min_lr=0.001"),
    ),
    "folder.scratch": (
        *("folder.scratch", "--data-dir", "drawings", "--epochs", "3", "--precision", "fp32"),
        *("--set=peak_lr=0.05", "--set=min_lr=0.001", "--set=side=32"),
    ),
    "folder.transfer": ("folder.transfer", "--data-dir", "drawings", "--precision", "fp32", "--set=tune=on"),
}
"""What is trained, killed and resumed, as a shell takes it; the drawings are in the current folder."""


def drawings(folder: Path, each: int = 24) -> None:
    """Write so many rings, bars and crosses, a folder for each."""
    from PIL import Image, ImageDraw

    draw = random.Random(0)
    for kind in ("ring", "bar", "cross"):
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            ground, colour = (tuple(draw.randrange(low, low + 120) for _ in range(3)) for low in (0, 130))
            image = Image.new("RGB", (draw.randrange(60, 90), 70), ground)
            pen, x, y = ImageDraw.Draw(image), draw.randrange(20), draw.randrange(30)
            if kind == "ring":
                pen.ellipse((x, y, x + 36, y + 36), outline=colour, width=6)
            else:
                pen.rectangle((x, y + 14, x + 36, y + 22), fill=colour)
            if kind == "cross":
                pen.rectangle((x + 14, y, x + 22, y + 36), fill=colour)
            image.save(folder / kind / f"{number}.png")


def command(kind: str, out: str) -> list[str]:
    rest = ("--device", "cpu", "--checkpoint-minutes", "0", "--resume", "--out", out)
    return [sys.executable, "-m", "firstlight", "train", *RUNS[kind], *rest]


def outcome(out: Path) -> list[bytes]:
    """Return what may not depend on whether a run was killed."""
    return [(out / name).read_bytes() for name in ("model.safetensors", "predictions.safetensors")]


@contextlib.contextmanager
def running(network: Network, bucket: Bucket | None = None) -> Iterator[int]:
    """Serve a network by a thread of this process; yield the port."""
    import uvicorn

    from firstlight.serve.app import application, bound

    network.prepare()
    with ThreadPoolExecutor(1) as executor, bound("127.0.0.1", 0) as listener:
        app = application(network, executor, bucket=bucket)
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11", loop="asyncio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def cycle(out: Path, **options: Any) -> list[bytes]:
    """Train, report, predict, serve and ask, all in this process; return what the run came to."""
    import firstlight
    from firstlight.serve.network import Network

    run = firstlight.train("shapes.demo", out=out, quiet=True, **options)
    run.report()
    picture = out / "figures" / "confusion.png"
    (prediction,) = run.predict(picture)
    with running(Network(run, run.fit)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        kind = {"Content-Type": "image/png"}
        connection.request("POST", "/predict?heat=&similar=3", picture.read_bytes(), kind)
        answer = json.loads(connection.getresponse().read())
        connection.close()
    assert answer["label"] == prediction.label
    bits = outcome(out)
    shutil.rmtree(out)
    return bits


def soak(minutes: float, keep: bool) -> bool:
    """Do all that a person does, and kill and resume a run of each kind in turn, over and over."""
    from firstlight.machine.storage import cache_folder

    settings = {"train": 240, "test": 60, "width": 2, "batch_size": 20, "validation": 20, "epochs": 2}
    options = {"peak_lr": 0.05, "min_lr": 0.001, "device": "cpu", "precision": "fp32"}
    states, kills, same, draw = [], dict.fromkeys(RUNS, 0), True, random.Random()
    with tempfile.TemporaryDirectory(prefix="firstlight-soak-") as name:
        place = Path(name)
        os.environ["FIRSTLIGHT_CACHE"] = str(place / "cache")
        # Of its own, so that no file of another program is counted.
        tempfile.tempdir = os.environ["TMPDIR"] = str(place / "temporary")
        Path(tempfile.tempdir).mkdir()
        drawings(place / "drawings")
        for _ in range(2):  # the first compiles the kernels, so it says nothing of how long one takes
            whole = {kind: _alone(kind, place) for kind in RUNS}
        first = cycle(place / "cycle", **settings, **options)
        end, count = time.monotonic() + 60 * minutes, 1
        while time.monotonic() < end or count < 4:
            same &= cycle(place / "cycle", **settings, **options) == first
            kind = tuple(RUNS)[count % len(RUNS)]
            seconds, bits = whole[kind]
            for cache in ("features", "folder-*"):  # so that reading pictures is interrupted too
                for folder in cache_folder().glob(cache) if count % 2 else ():
                    shutil.rmtree(folder)
            kills[kind] += _killed(kind, place, draw.uniform(0.05, seconds))
            same &= outcome(place / "killed") == bits
            shutil.rmtree(place / "killed")
            states.append(_state())
            count += 1
    early, last = states[len(states) // 10], states[-1]
    growth = {key: round(last[key] - early[key], 1) for key in early}
    flat = growth["memory_mb"] < GROWTH_MB and growth["handles"] <= 0 and growth["threads"] <= 0
    record(
        __file__,
        None,
        keep=keep,
        what="soak",
        name="train, report, predict, serve; kill, resume",
        minutes=minutes,
        count=count,
        failures=int(not (same and flat)),
        **{f"kills_{kind}": number for kind, number in kills.items()},
        same_bits=same,
        memory_mb=round(last["memory_mb"]),
        **{f"growth_{key}": value for key, value in growth.items()},
    )
    return same and flat


def _alone(kind: str, place: Path) -> tuple[float, list[bytes]]:
    """Train one kind of run to its end; return the seconds that it took, and what it came to."""
    start = time.monotonic()
    subprocess.run(command(kind, "whole"), check=True, stdout=subprocess.DEVNULL, cwd=place)
    seconds, bits = time.monotonic() - start, outcome(place / "whole")
    shutil.rmtree(place / "whole")
    return seconds, bits


def _killed(kind: str, place: Path, delay: float) -> int:
    """Start a run, kill it after a while, resume it to its end; return whether it was killed at work."""
    words = command(kind, "killed")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, cwd=place, **quiet) as process:
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        killed = int(process.wait() != 0)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=place)
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
