"""The memory allocator, set for training where the C library is glibc."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from pathlib import Path


def tune_allocator() -> str:
    """Let glibc keep freed memory, in huge pages where Linux offers them; say what took effect.

    Activations above 32 MB are otherwise mapped and faulted anew at every operation, which costs a
    third of a training step, and in small pages the processor looks addresses up all the time, which
    costs another tenth. Elsewhere than on glibc nothing is changed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "default"
    trim_threshold, mmap_max = -1, -4  # the names of <malloc.h> are M_TRIM_THRESHOLD and M_MMAP_MAX
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # A threshold of -1 is the largest there is: nothing is given back.
    if mallopt(mmap_max, 0) != 1 or mallopt(trim_threshold, -1) != 1:
        return "default"
    return "glibc, blocks kept" + (", huge pages" if _reserve_huge_pages() else "")


_RESERVED = 2**32
"""Address space that is prepared for huge pages; it takes memory only where it is used."""


@functools.cache
def _reserve_huge_pages() -> bool:
    """Ask for huge pages in the part of the heap that later allocations will come from, once a process."""
    try:
        offered = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return False
    if "[never]" in offered:
        return False
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    libc.madvise.argtypes, libc.madvise.restype = (
        (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        ctypes.c_int,
    )
    block = libc.malloc(_RESERVED)
    if not block:
        return False
    huge = 2**21
    begin, end = (block + huge - 1) // huge * huge, (block + _RESERVED) // huge * huge
    advised = libc.madvise(begin, end - begin, 14)  # MADV_HUGEPAGE of <sys/mman.h>
    libc.free(block)
    return bool(advised == 0)
