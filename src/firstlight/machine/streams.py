"""Random streams: one for each seed and purpose, never the global one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Return the random stream of a seed and a purpose, such as ("order", epoch).

    Streams for different purposes are independent, and no global stream is touched.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@contextlib.contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Inside the `with`, let torch's global CPU stream, from which layers draw their weights, be `stream(…)`.

    The caller's global stream is put back at the end.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(seed, *purpose).get_state())
        yield
