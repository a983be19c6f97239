"""Many pictures are read by several processes, in parts; what was read whole is not read again after a stop.

The processes are started with a line of their own, and not by `multiprocessing`: that would run the program
of a person again in each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from firstlight.data.cache import npy_header, npy_header_of, whole
from firstlight.data.folder_files import Picture
from firstlight.data.folder_picture import THUMBNAIL, Rows
from firstlight.data.folder_pixels import Pixels
from firstlight.data.folder_worker import Files, say
from firstlight.data.stored import StoredImages
from firstlight.errors import RunFailed, printable
from firstlight.machine.limits import usable_cores, usable_memory

MANY = 10_000
"""Pictures from which on several processes read them: each takes seconds to start."""
_PART = 1024
_PROCESS_BYTES = 2**30
"""Memory for each process: a picture of the largest size that is read takes half of it."""
_AGAIN = "The same command goes on where it stopped."
# The room's own module imports every source and torch with them, which takes a second: it is stood in for.
_START = """
import sys, types, firstlight
room = types.ModuleType("firstlight.data")
room.__path__ = [f"{firstlight.__path__[0]}/data"]
sys.modules[room.__name__] = room
from firstlight.data.folder_worker import work
work()
"""


def read_in_parts(
    pictures: Sequence[Picture], side: int, fit: str, folder: Path, *, thumbnails: bool
) -> Pixels:
    """Read all pictures into files in `folder`, by several processes, and show a bar.

    Parts that an earlier call left whole are taken as they are. Raises RunFailed where the disk is full or a
    process ends before its time; what was read until then is kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = Files(str(folder / "rows.npy"), None, side, fit)
        _make_npy(Path(files.rows), (len(pictures), 3, side, side))
        if thumbnails:
            files = Files(files.rows, str(folder / "thumbnails.npy"), side, fit)
            _make_npy(folder / "thumbnails.npy", (len(pictures), *THUMBNAIL))
        starts = range(0, len(pictures), _PART)
        paths = {start: folder / f"part-{start // _PART:06d}.json" for start in starts}
        left = [start for start in starts if _part(paths[start], files, start) is None]
        tasks = [
            {
                "part": os.fspath(paths[start]),
                "first": start,
                "pictures": [
                    (picture.name, os.fspath(picture.path)) for picture in pictures[start : start + _PART]
                ],
            }
            for start in left
        ]
        _read(tasks, files, len(pictures))
        parts = [json.loads(paths[start].read_bytes()) for start in starts]
        rows = StoredImages.open(Path(files.rows))
        small: Rows = np.zeros((0, *THUMBNAIL), np.uint8)
        if files.thumbnails is not None:
            small = np.lib.format.open_memmap(files.thumbnails, mode="c")
    except OSError as error:
        raise _full(error, folder) from error
    return Pixels(
        rows,
        [digest for part in parts for digest in part["digests"]],
        [reason for part in parts for reason in part["reasons"]],
        all(part["is_final"] for part in parts),
        small,
    )


@contextlib.contextmanager
def only_reader(folder: Path) -> Iterator[bool]:
    """Let one process at a time read into a folder; remove what is left beside it of other readings.

    Yields False where nothing can be written there.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=2)
    except OSError as error:
        if not isinstance(error, Timeout):
            yield False
            return
        words = "waiting for another process that reads these pictures, {elapsed}"
        with tqdm(bar_format=words, disable=None, leave=False):
            lock.acquire()
    try:
        for other in folder.parent.glob("reading-*"):
            if other.is_dir() and other != folder:
                with contextlib.suppress(Timeout, OSError), FileLock(f"{other}.lock", timeout=0):
                    shutil.rmtree(other)
                    Path(f"{other}.lock").unlink(missing_ok=True)
        yield True
    finally:
        # Removed while it is held: whoever waits for this file looks again for the one at its path.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _make_npy(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file of so many bytes, unless there is one."""
    with contextlib.suppress(OSError, ValueError):
        if npy_header(path)[0] == shape:
            return
    size = math.prod(shape)
    if shutil.disk_usage(path.parent).free < 1.5 * size:
        need, free = 1.5 * size / 2**30, shutil.disk_usage(path.parent).free / 2**30
        message = f"reading these pictures takes {need:.3g} GB of disk, and {path.parent} has {free:.3g} GB"
        raise RunFailed(printable(message), "Make room, or set FIRSTLIGHT_CACHE to a folder that has it.")
    with whole(path) as temporary, temporary.open("xb") as file:
        header = npy_header_of(shape)
        file.write(header)
        file.truncate(len(header) + size)


def _part(path: Path, files: Files, first: int) -> Mapping[str, Any] | None:
    """Return what was found in a part, None where it was not read whole or its pixels are not those."""
    try:
        part: dict[str, Any] = json.loads(path.read_bytes())
        names = [name for name in (files.rows, files.thumbnails) if name is not None]
        sums = [_sum(Path(name), first, len(part["digests"])) for name in names]
        is_whole = part["sha256"] == sums and part["is_final"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return part if is_whole else None


def _sum(path: Path, first: int, count: int) -> str:
    """Return the SHA-256 of some rows of a .npy file."""
    shape, _, _, offset = npy_header(path)
    size, sha = math.prod(shape[1:]), hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset + first * size)
        for _ in range(count):
            sha.update(file.read(size))
    return sha.hexdigest()


def _read(tasks: Sequence[Mapping[str, Any]], files: Files, total: int) -> None:
    """Let processes do the tasks; tasks: what `work` reads, a part each."""
    if not tasks:
        return
    count = max(1, min(usable_cores(), usable_memory() // _PROCESS_BYTES, len(tasks)))
    waiting, lock = iter(tasks), threading.Lock()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    left = sum(len(task["pictures"]) for task in tasks)
    with contextlib.ExitStack() as stack:
        # Left last: its threads wait for the processes, which are killed first, whenever Ctrl-C comes.
        pool = stack.enter_context(ThreadPoolExecutor(count))
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="ascii",
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        bar = stack.enter_context(
            tqdm(
                **{"total": total, "initial": total - left, "desc": "reading", "unit": " pictures"},
                **{"delay": 2, "disable": None, "leave": False},
            )
        )

        def serve(process: subprocess.Popen[str]) -> None:
            assert process.stdin is not None and process.stdout is not None
            say(process.stdin, vars(files))
            while True:
                with lock:
                    task = next(waiting, None)
                if task is None:
                    return
                say(process.stdin, task)
                for line in process.stdout:
                    answer = json.loads(line)
                    if "errno" in answer:
                        raise OSError(answer["errno"], answer["strerror"], answer["filename"])
                    with lock:
                        bar.update(answer["read"])
                    if answer["is_end"]:
                        break
                else:
                    raise BrokenPipeError

        served = {pool.submit(serve, process): process for process in processes}
        for future in as_completed(served):
            try:
                future.result()
            except (BrokenPipeError, ValueError):  # also half a line
                raise _ended(served[future].wait()) from None


def _ended(code: int) -> RunFailed:
    how = signal.Signals(-code).name if code < 0 else f"code {code}"
    return RunFailed(
        f"a process that reads pictures ended before its time ({how})",
        f"It may have found too little memory; FIRSTLIGHT_MEMORY=4G, say, starts fewer of them. {_AGAIN}",
    )


def _full(error: OSError, folder: Path) -> RunFailed:
    where = printable(error.filename or folder)
    return RunFailed(
        f"cannot write {where}: {error.strerror or error}",
        f"Make room, or set FIRSTLIGHT_CACHE to another folder. {_AGAIN}",
    )
