"""Images per second and resident memory for 10 thousand, 100 thousand and 1 million images of 32×32.

    python -m benchmarks.speed.large_sets [--counts 10000 100000 1000000] [--memory 1G] [--rounds 5]
        [--read 85] [--trained 43] [--width 8] [--folder DIR] [--record]

The sets are made from integer arithmetic, in the form of the cache: 3 KB an image. --memory stands for the
memory of a machine (FIRSTLIGHT_MEMORY): a million exceeds 1 GB and is read in windows, the smaller sets are
held. Every size has a process of its own, and the system's copy of its file is dropped at the start, so that
the disk is read. All processes are there at once and take short turns (A B C A B C …), since the machine
changes more in a minute than the sizes differ. In a turn of the first rounds each reads and augments --read
batches; in those of the second it also trains a narrow network (the assignment's, --width), with --trained
batches. A ratio is the median, over the rounds, of a size's speed to that of the first in the same round.
Speeds are by the clock, and by the processor time of all threads. Memory is the most that /proc/self/status
showed: anonymous, and resident with files and libraries.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.measure import own_process, parser, record

CLASSES, BATCH, AT_ONCE = 10, 512, 10_000
WARM_UP = 20
"""Batches. No multiple of a window, so that the next one is not read in the turn of another size."""


def make(folder: Path, count: int) -> str:
    """Write so many images and labels as the cache does; return their digest."""
    import numpy as np

    from firstlight.data.cache import ArrayCache, stamps, whole

    places = np.arange(3072, dtype=np.uint64) * np.uint64(2654435761)
    sha = hashlib.sha256()

    def write(name: str, dtype: str, shape: tuple[int, ...], parts: Iterator[bytes]) -> None:
        sha.update(f"{name} {dtype} {shape}\n".encode())
        with whole(folder / f"{name}.npy") as path, path.open("xb") as file:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                sha.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def pixels() -> Iterator[bytes]:
        for start in range(0, count, AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, count), dtype=np.uint64)[:, None]
            noise = (rows * np.uint64(40503) + places ^ rows >> np.uint64(3)) >> np.uint64(13)
            level = rows % np.uint64(CLASSES) * np.uint64(12)
            yield (noise % np.uint64(128) + level).astype(np.uint8).tobytes()

    write("images", "|u1", (count, 3, 32, 32), pixels())
    write("labels", "<i8", (count,), iter([(np.arange(count, dtype="<i8") % CLASSES).tobytes()]))
    cache = ArrayCache(folder, ("images", "labels"), sha.hexdigest())
    cache.set_verified(stamps([folder / "images.npy", folder / "labels.npy"]))
    return sha.hexdigest()


def made(folder: Path, count: int) -> str:
    """Return the digest of a set in a folder, made where it is not there yet."""
    path = folder / "sha256.txt"
    if not path.exists():
        path.write_text(make(folder, count), encoding="ascii")
    return path.read_text("ascii")


def drop(path: Path) -> None:
    """Let the system forget its copy of a file, so that the disk is read."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Memory:
    """The most memory that this process was seen to take, in bytes."""

    def __init__(self) -> None:
        self.anonymous = self.resident = 0

    def look(self) -> None:
        try:
            lines = Path("/proc/self/status").read_text("ascii").splitlines()
        except OSError:
            return
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        self.anonymous = max(self.anonymous, sizes["RssAnon"])
        self.resident = max(self.resident, sizes["VmRSS"])


class Trial:
    """Reads and trains in this process, some batches in a turn."""

    def __init__(self, folder: str, digest: str, width: int) -> None:
        import torch

        from firstlight.data.cache import ArrayCache
        from firstlight.data.images import ImageSet
        from firstlight.data.stored import StoredImages
        from firstlight.data.windows import most_held
        from firstlight.jobs.job import Job
        from firstlight.machine.machine import choose
        from firstlight.recipes import resolve
        from firstlight.training.loop import endless

        arrays = ArrayCache(Path(folder), ("images", "labels"), digest).load()
        if arrays is None:
            sys.exit(f"the set in {folder} is damaged")
        self.bytes = arrays["images"].nbytes
        is_held = self.bytes <= most_held()
        path = Path(folder) / "images.npy"
        images = torch.from_numpy(arrays["images"]) if is_held else StoredImages.open(path)
        labels, names = torch.from_numpy(arrays["labels"]), range(len(arrays["labels"]))
        classes = tuple(str(number) for number in range(CLASSES))
        train = ImageSet(images, labels, classes, (0.46,) * 3, (0.2,) * 3, names)  # type: ignore[arg-type]
        test = ImageSet(images[:BATCH], labels[:BATCH], classes, train.mean, train.std, names[:BATCH])  # type: ignore[arg-type]
        rates = {"peak_lr": 0.1, "min_lr": 0.001}
        recipe = resolve("shapes.demo", width=width, batch_size=BATCH, epochs=100, **rates)
        self.job, self.memory = Job.with_images(train, test, recipe, choose("cpu")), Memory()
        self.batches, self.state = endless(self.job.batches), self.job.state()

    def turn(self, kind: str, count: int) -> tuple[float, float]:
        """Read, or also train with, so many batches; return images per second of the clock and processor."""
        from firstlight.training.loop import train_step

        objective = self.job.recipe.objective
        self.state.model.train()
        start, processor = time.perf_counter(), time.process_time()
        for number in range(count):
            pixels, labels = next(self.batches)
            if kind == "train":
                train_step(self.state, pixels, labels, 0.01, objective, self.job.machine)
            if number % 20 == 19:
                self.memory.look()
        seconds = time.perf_counter() - start, time.process_time() - processor
        return count * BATCH / seconds[0], count * BATCH / seconds[1]

    def facts(self) -> dict[str, Any]:
        self.memory.look()
        blocks = self.job.batches.blocks
        return {
            "set_mb": round(self.bytes / 2**20),
            "order": "whole" if blocks is None else f"windows of {blocks.window}",
            "anonymous_mb": round(self.memory.anonymous / 2**20),
            "resident_mb": round(self.memory.resident / 2**20),
        }


_trials: list[Trial] = []
"""That of this process."""


def begin(folder: str, digest: str, width: int) -> None:
    _trials.append(Trial(folder, digest, width))


def turn(kind: str, count: int) -> tuple[float, float]:
    return _trials[0].turn(kind, count)


def facts() -> dict[str, Any]:
    return _trials[0].facts()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--memory", default="1G", help="of the machine that is stood for")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--read", type=int, default=85, help="batches in a turn")
    options.add_argument("--trained", type=int, default=43, help="batches in a turn")
    options.add_argument("--width", type=int, default=8)
    options.add_argument("--folder", type=Path, help="where the sets are kept, 4 GB; by default they are not")
    arguments = options.parse_args()
    counts, speeds = arguments.counts, defaultdict[tuple[int, str], list[tuple[float, float]]](list)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        digests = {count: made(folder / str(count), count) for count in counts}
        calls = {
            count: stack.enter_context(own_process(FIRSTLIGHT_MEMORY=arguments.memory)) for count in counts
        }
        for count, call in calls.items():
            drop(folder / str(count) / "images.npy")
            call(begin, str(folder / str(count)), digests[count], arguments.width)
        for kind, batches in (("read", arguments.read), ("train", arguments.trained)):
            for call in calls.values():
                call(turn, kind, WARM_UP)
            for _ in range(arguments.rounds):
                for count, call in calls.items():
                    speeds[count, kind].append(call(turn, kind, batches))
        found = {count: call(facts) for count, call in calls.items()}

    from firstlight.machine.machine import choose

    def speed(count: int, kind: str, which: int) -> int:
        return round(statistics.median(each[which] for each in speeds[count, kind]))

    def ratio(count: int, kind: str, which: int) -> float:
        pairs = zip(speeds[count, kind], speeds[counts[0], kind], strict=True)
        return round(statistics.median(own[which] / first[which] for own, first in pairs), 3)

    for count in counts:
        values: dict[str, Any] = {}
        for which, clock in enumerate(("", "_processor")):
            for kind in ("read", "train"):
                values[f"{kind}_per{clock}_second"] = speed(count, kind, which)
                values[f"{kind}{clock}_ratio"] = ratio(count, kind, which)
        place = {"memory": arguments.memory, "rounds": arguments.rounds}
        record(
            __file__, choose("cpu"), keep=arguments.record, images=count, **place, **found[count], **values
        )


if __name__ == "__main__":
    main()
