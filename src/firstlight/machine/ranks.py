"""Ranks: the processes of one run that torchrun started, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from firstlight.errors import InputError, RunFailed
from firstlight.machine.limits import usable_cores

STEP_SECONDS = 60.0
"""A rank that is silent for so long in a training step ends the run."""
_PATIENCE = timedelta(days=1)
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "broken pipe")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` of its run. rank: from 0; local: among those of this machine.

    group: through which ranks wait for what one of them does alone, such as the finder; it does not time
    out, and notices at once where a process ends. The default group of torch.distributed serves the steps.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    group: Any = field(default=None, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def rows(self, end: int) -> int:
        """Return how many of the rows 0 … end - 1 are this rank's: rank, rank + count, and so on."""
        return len(range(self.rank, end, self.count))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors in place by their sums over the ranks, in one message."""
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def broadcast(self, value: _T) -> _T:
        """Return the first rank's value."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self.group)
        return box[0]

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all ranks, in their order."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def interleave(self, mine: Sequence[_T]) -> list[_T]:
        """Return all ranks' items as they were dealt out: one to each rank in turn."""
        parts = self.gather(list(mine))
        return [parts[index % self.count][index // self.count] for index in range(sum(map(len, parts)))]

    def together(self, work: Callable[[], _T]) -> _T:
        """Do something on every rank; an error on one of them ends all, and one prints it."""
        if self.alone:
            return work()
        result, error = None, None
        try:
            result = work()
        except (InputError, RunFailed) as caught:
            error = caught
        failed = [rank for rank, wrong in enumerate(self.gather(error is not None)) if wrong]
        if error is not None and self.rank == failed[0]:
            raise error
        if failed:
            raise SystemExit(2)
        return result  # type: ignore[return-value]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one rank of each machine go first, so that it fills caches for the others."""
        if self.local:
            self.gather(None)
        try:
            yield
        finally:
            if not self.local:
                self.gather(None)

    def require_equal(self, digest: str, when: str) -> None:
        """Raise RunFailed on the first rank where digests of weights differ; the others end in silence."""
        digests = self.gather(digest)
        different = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        if different and not self.first:
            raise SystemExit(1)
        if different:
            raise RunFailed(
                f"the weights of rank {', '.join(different)} differ from those of rank 0 {when}",
                "Go on from the last checkpoint with --resume; where it happens again, test the hardware.",
            )


ALONE = Ranks()
_joined = ALONE


def joined() -> Ranks:
    """Return this process's place among the ranks; `ALONE` outside `join`."""
    return _joined


def is_follower() -> bool:
    """Whether another process of this run does the writing and printing."""
    return started() > 1 and os.environ["RANK"] != "0"


def started() -> int:
    """Return how many processes torchrun started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextlib.contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the other processes where torchrun started several; raises RunFailed where one of them ends.

    device: as `machine.choose` takes it. A CUDA device is that of the local rank, over NCCL; a CPU is over
    gloo, with as many threads as there are cores for each rank.
    """
    global _joined
    if started() == 1 or not _joined.alone:
        yield _joined
        return
    rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "mps" or (on_cuda and local >= torch.cuda.device_count()):
        have = torch.cuda.device_count() if on_cuda else "no"
        raise InputError(f"local rank {local} has no GPU of its own: there are {have}", "Use --device cpu.")
    if on_cuda:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(_threads(int(os.environ.get("LOCAL_WORLD_SIZE", count))))
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=STEP_SECONDS),
    )
    _joined = Ranks(rank, count, local, dist.new_group(backend="gloo", timeout=_PATIENCE))
    try:
        yield _joined
        _joined.gather(None)  # whoever leaves early would look lost to the others
        dist.destroy_process_group()
    except BaseException as error:
        lost = _is_loss(error) or _is_loss(error.__context__)
        if threading.current_thread() is threading.main_thread() and lost:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all; one line comes first
        told = not isinstance(error, SystemExit) and not _is_told_first(store)
        if told and (lost or isinstance(error, (InputError, RunFailed))):
            raise SystemExit(2 if isinstance(error, InputError) else 1) from None
        if lost:
            raise RunFailed(
                "a process of this run ended, or did not answer for a minute; the others stop",
                "Go on from the last checkpoint: the same command with --resume, and as many processes.",
            ) from error
        raise
    finally:
        _joined = ALONE


def _is_told_first(store: Any) -> bool:
    """Whether no other rank has told yet how the run ended; True where its process took the store along."""
    try:
        return bool(store.add("firstlight-ended", 1) == 1)
    except RuntimeError:
        return True


def _is_loss(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or isinstance(error, RunFailed):
        return False
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in words for word in _LOST)


def _threads(processes: int) -> int:
    """Return the threads of one rank: FIRSTLIGHT_THREADS, else OMP_NUM_THREADS, else cores / processes.

    OMP_NUM_THREADS=1 does not count as set, since torchrun sets it where nobody did.
    """
    for name in ("FIRSTLIGHT_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdigit() and int(text) and (name, text) != ("OMP_NUM_THREADS", "1"):
            return int(text)
    return max(1, usable_cores() // processes)
