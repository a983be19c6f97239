"""How OpenMP's threads wait for each other. This module loads no torch: it has to act before torch does."""

from __future__ import annotations

import os

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_threads_sleep() -> None:
    """Let waiting threads spin for some microseconds only, then sleep, unless the user chose how they wait.

    A step of a narrow network has hundreds of short parallel loops. A thread that spins at the end of one
    keeps its core from the thread that it waits for, where another program wants a core too: two trainings
    at once on two cores were 6 to 18 times slower than one alone. One that sleeps at once has to be woken for
    each loop, a tenth of such a step (benchmarks/speed/beside.py).
    Read when OpenMP is loaded, which torch does; later calls change nothing.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["GOMP_SPINCOUNT"] = "2000"  # GNU's OpenMP, which torch's own packages bring
        os.environ["KMP_BLOCKTIME"] = "0"  # that of LLVM and Intel: milliseconds
