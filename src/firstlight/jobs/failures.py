"""How a job ends before its time: stopped, or out of disk or memory."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from firstlight.errors import RunFailed
from firstlight.jobs.job import Job
from firstlight.record.record import Record


@contextlib.contextmanager
def interruptible(calm: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C (or SIGTERM) a request that the yielded function reports; a second interrupts.

    calm: seconds in which a second one changes nothing; torchrun passes on what its processes got already.
    So work can be stopped where its state is whole. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopped: float | None = None

    def stop(*_: object) -> None:
        nonlocal stopped
        if stopped is None:
            stopped = time.monotonic()
        elif time.monotonic() - stopped >= calm:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP what Ctrl-C is, so that nothing half-made stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def removed_unless_begun(record: Record) -> Iterator[None]:
    """Remove a run folder where the job ends before its first step: nothing in it is worth keeping."""
    try:
        yield
    except BaseException:
        if not record.is_begun:
            record.folder.remove(".")
        raise


@contextlib.contextmanager
def failures_explained(
    path: Path,
    job: Job,
    *,
    room: str = "Make room, then go on from the last checkpoint with --resume.",
    smaller: str = "--set batch_size={} fits here.",
) -> Iterator[None]:
    """Turn a full disk or exhausted memory into one sentence and what to do.

    path: what is written. room, smaller: the hints; the second is given the batch size that fits.
    """
    try:
        yield
        return
    except OSError as error:
        what = f"cannot write {error.filename or path}: {error.strerror or error}"
        raise RunFailed(what, room) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        # The failed step's tensors hang on its frames; without them there is room to try a smaller one.
        traceback.clear_frames(error.__traceback__)
    size, fits = job.recipe.batch_size, job.batch_that_fits()
    hint = smaller.format(fits) if fits else "Choose a narrower network: --set width=…"
    raise RunFailed(f"out of memory with batches of {size}", hint)


def _is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in message
        or "can't allocate memory" in message
        or "not enough memory" in message
    )
