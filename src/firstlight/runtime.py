"""Where it runs: device, precision, threads, memory allocator, random streams, clock."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """What a run computes on, decided once before it starts."""

    device: torch.device
    precision: str
    threads: int
    hardware: str
    allocator: str = "default"
    determinism: str = "draws"

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations; weights stay fp32."""
        return _DTYPES[self.precision]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which a forward pass computes in this machine's precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, its weights laid out channels-last."""
        # The stubs of `Module.to` know no memory format alone.
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def synchronise(self) -> None:
        """Wait until the device has done what was asked of it, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


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


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Return a random stream of its own for a seed and a purpose, such as ("order", epoch).

    Streams for different purposes are independent, and no global stream is touched.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@contextlib.contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Give code that draws from torch's global CPU stream, such as layer constructors, its own stream.

    The caller's global stream is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(stream(seed, *purpose).get_state())
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C (or SIGTERM) a request that the yielded function reports; a second interrupts.

    So work can be stopped where its state is whole. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopwatch:
    """Seconds of running time, on a synchronised device, with pauses left out."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._elapsed = 0.0
        self._start: float | None = None

    def start(self) -> None:
        self._machine.synchronise()
        self._start = time.perf_counter()

    def pause(self) -> None:
        self._machine.synchronise()
        self._elapsed = self.seconds
        self._start = None

    @property
    def seconds(self) -> float:
        """Seconds so far, without waiting for the device."""
        running = 0.0 if self._start is None else time.perf_counter() - self._start
        return self._elapsed + running


def hardware_name(device: torch.device) -> str:
    """Name the processor or GPU in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    name = f"{model}, {usable_cores()} cores, {_vector_extension()}"
    return f"{name}, MPS" if device.type == "mps" else name


def cpu_has(capability: str) -> bool:
    """Whether the processor itself offers this, in torch's words, such as "avx512_bf16"."""
    # An older torch knows fewer, each by a function of its own, which is not promised to stay.
    older = getattr(torch.cpu, f"_is_{capability}_supported", lambda: False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(capability) or older())


def fast_bf16_products() -> bool:
    """Whether torch multiplies bf16 matrices faster than fp32 ones on this processor.

    Intel's chips do it by AMX. Where that is kept from them (in many virtual machines), their AVX-512
    product of bf16 pairs has half the throughput of fp32; AMD's has four times it. Those of Intel that offer
    it without AMX are told by their fp16 arithmetic.
    """
    slow = cpu_has("avx512_fp16") and not cpu_has("amx_tile")
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not slow


def _vector_extension() -> str:
    """Name the widest arithmetic that the processor itself offers, in the words of its maker."""
    extensions = {"amx_tile": "AMX", "avx512_fp16": "AVX-512 FP16", "avx512_bf16": "AVX-512 BF16"}
    for capability, name in extensions.items():
        if cpu_has(capability):
            return name
    return torch.backends.cpu.get_cpu_capability()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """Return FIRSTLIGHT_CACHE, or the platform's folder for caches, where whatever takes time is kept."""
    if chosen := os.environ.get("FIRSTLIGHT_CACHE"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("firstlight"))
