"""Images per second and resident memory for 10 thousand, 100 thousand and 1 million images of 32×32.

    python -m benchmarks.speed.large_sets [--counts 10000 100000 1000000] [--memory 1G] [--rounds 3]
        [--read 1000000] [--trained 100000] [--width 8] [--folder DIR] [--record]

The sets are made from integer arithmetic, in the form of the cache: 3 KB an image. --memory stands for the
memory of a machine (FIRSTLIGHT_MEMORY): a million exceeds 1 GB and is read in windows, the smaller sets are
held. Every size has a process of its own, in turn (A B C A B C …), after the system's copy of its file is
dropped, so that the disk is read. Each process reads and augments --read images, then trains a narrow network
(the assignment's, --width) with --trained images, both over as many epochs as that takes. Medians are taken,
by the clock and by the processor time of all its threads, which other work on the machine disturbs less.
Memory is the most that /proc/self/status showed: anonymous, and resident with files and libraries.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import in_own_process, parser, record

CLASSES, BATCH, AT_ONCE = 10, 512, 10_000


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


def measure(folder: str, digest: str, read: int, trained: int, width: int) -> dict[str, Any]:
    """Read and train in this process; return images per second of both, the order, and the memory."""
    import torch

    from firstlight.data.cache import ArrayCache
    from firstlight.data.images import ImageSet
    from firstlight.data.stored import StoredImages
    from firstlight.data.windows import most_held
    from firstlight.jobs.job import Job
    from firstlight.machine.machine import choose
    from firstlight.recipes import resolve
    from firstlight.training.loop import train_step

    arrays = ArrayCache(Path(folder), ("images", "labels"), digest).load()
    if arrays is None:
        sys.exit(f"the set in {folder} is damaged")
    is_held = arrays["images"].nbytes <= most_held()
    images = torch.from_numpy(arrays["images"]) if is_held else StoredImages.open(Path(folder) / "images.npy")
    labels, names = torch.from_numpy(arrays["labels"]), range(len(arrays["labels"]))
    classes = tuple(str(number) for number in range(CLASSES))
    train = ImageSet(images, labels, classes, (0.46,) * 3, (0.2,) * 3, names)  # type: ignore[arg-type]
    test = ImageSet(images[:BATCH], labels[:BATCH], classes, train.mean, train.std, names[:BATCH])  # type: ignore[arg-type]
    rates = {"peak_lr": 0.1, "min_lr": 0.001}
    recipe = resolve("shapes.demo", width=width, batch_size=BATCH, epochs=100, **rates)
    job = Job.with_images(train, test, recipe, choose("cpu"))
    memory = Memory()

    @contextmanager
    def clock(speeds: dict[str, float], name: str, count: int) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        yield
        speeds[name] = count / (time.perf_counter() - start)
        speeds[f"{name}_processor"] = count / (time.process_time() - processor)

    def batches(count: int) -> Iterator[Any]:
        done = epoch = 0
        while done < count:
            for batch in job.batches.epoch(epoch):
                yield batch
                done += BATCH
                if done % (20 * BATCH) == 0:
                    memory.look()
                if done >= count:
                    break
            epoch += 1

    speeds: dict[str, float] = {}
    with clock(speeds, "read", read):
        for _ in batches(read):
            pass
    state = job.state()
    state.model.train()
    with clock(speeds, "train", trained):
        for pixels, numbers in batches(trained):
            train_step(state, pixels, numbers, 0.01, recipe.objective, job.machine)
    memory.look()
    blocks = job.batches.blocks
    return {
        **speeds,
        "order": "whole" if blocks is None else f"windows of {blocks.window}",
        "anonymous": memory.anonymous,
        "resident": memory.resident,
        "bytes": arrays["images"].nbytes,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--memory", default="1G", help="of the machine that is stood for")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--read", type=int, default=1_000_000)
    options.add_argument("--trained", type=int, default=100_000)
    options.add_argument("--width", type=int, default=8)
    options.add_argument(
        "--folder", type=Path, help="where the sets are made, 4 GB; a temporary one by default"
    )
    arguments = options.parse_args()
    rows: dict[int, list[dict[str, Any]]] = {count: [] for count in arguments.counts}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        digests = {count: make(Path(folder) / str(count), count) for count in arguments.counts}
        for _ in range(arguments.rounds):
            for count, digest in digests.items():
                drop(Path(folder) / str(count) / "images.npy")
                work = (str(Path(folder) / str(count)), digest, arguments.read, arguments.trained)
                rows[count].append(
                    in_own_process(measure, *work, arguments.width, FIRSTLIGHT_MEMORY=arguments.memory)
                )

    from firstlight.machine.machine import choose

    machine, first = choose("cpu"), rows[arguments.counts[0]]
    for count, results in rows.items():

        def speed(key: str, results: list[dict[str, Any]] = results) -> float:
            return statistics.median(each[key] for each in results)

        def ratio(key: str, results: list[dict[str, Any]] = results) -> float:
            return round(speed(key, results) / speed(key, first), 3)

        record(
            __file__,
            machine,
            keep=arguments.record,
            images=count,
            set_mb=round(results[0]["bytes"] / 2**20),
            memory=arguments.memory,
            order=results[0]["order"],
            read_per_second=round(speed("read")),
            train_per_second=round(speed("train")),
            read_ratio=ratio("read"),
            train_ratio=ratio("train"),
            read_per_processor_second=round(speed("read_processor")),
            train_per_processor_second=round(speed("train_processor")),
            read_processor_ratio=ratio("read_processor"),
            train_processor_ratio=ratio("train_processor"),
            anonymous_mb=round(max(each["anonymous"] for each in results) / 2**20),
            resident_mb=round(max(each["resident"] for each in results) / 2**20),
            rounds=arguments.rounds,
        )


if __name__ == "__main__":
    main()
