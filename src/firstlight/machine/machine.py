"""`Machine`: device and precision of a run, chosen once before it starts by what is faster there."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.kernels.convolution import convolve
from firstlight.machine.kernels.library import load
from firstlight.machine.memory import tune_allocator
from firstlight.machine.processor import hardware_name

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DETERMINISM = ("draws", "bits")
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


def choose(
    device: str = "auto", precision: str = "auto", *, determinism: str = "draws", tune_memory: bool = True
) -> Machine:
    """Choose device and precision, and set the memory allocator for training.

    determinism: "draws" gives the same order, augmentation and initial weights everywhere; "bits"
        asks a GPU, at some cost, also for the same arithmetic in the same order, which a CPU always gives.

    On a CPU `auto` precision is whichever of bf16 and fp32 is faster in a short measurement; on a
    CUDA device bf16 where it is native, else fp16; on MPS fp32.
    """
    if determinism not in DETERMINISM:
        raise InputError(
            f"unknown level of determinism {determinism!r}", "Known: " + ", ".join(DETERMINISM) + "."
        )
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}", "Known: " + ", ".join(DEVICES) + ".")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}", "Known: " + ", ".join(PRECISIONS) + ".")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    elif not there[device]:
        raise InputError(f"this torch ({torch.__version__}) sees no {device} device", "Use --device cpu.")
    if precision == "fp16" and device == "cpu":
        raise InputError("fp16 training needs a GPU", "On a CPU use --precision bf16 or fp32.")
    allocator = tune_allocator() if tune_memory and device == "cpu" else "default"
    chosen = torch.device(device)
    if precision == "auto":
        precision = _faster_precision(chosen)
    if device == "cpu":
        determinism = "bits"
    elif determinism == "bits":
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS asks for it, before its first call
        torch.use_deterministic_algorithms(True)
    return Machine(chosen, precision, torch.get_num_threads(), hardware_name(chosen), allocator, determinism)


def _faster_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "mps":
        return "fp32"
    # Without AVX-512 or AMX, bf16 arithmetic is emulated and slower than fp32; and chips that have it
    # differ in how fast it is, so what counts is the operation that a training would take.
    # In turn, the shortest of each, by a single thread: several wait for the slowest of them, so that other
    # work on the machine would choose.
    convolutions = {"bf16": _convolution(torch.bfloat16), "fp32": _convolution(torch.float32)}
    shortest = dict.fromkeys(convolutions, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(6):
            for precision, convolution in convolutions.items():
                start = time.perf_counter()
                convolution()
                seconds = time.perf_counter() - start
                if turn:  # the first call compiles the kernel
                    shortest[precision] = min(seconds, shortest[precision])
    finally:
        torch.set_num_threads(threads)
    return min(shortest, key=shortest.__getitem__)


def _convolution(dtype: torch.dtype) -> Callable[[], None]:
    """Return one convolution, forward and backward, at a size that a small network has."""
    images = torch.ones(32, 64, 16, 16, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    compiled = dtype == torch.bfloat16 and bool(load())
    filters = torch.ones(64, 64, 3, 3, dtype=torch.float32 if compiled else dtype)
    filters = filters.to(memory_format=torch.channels_last).requires_grad_()

    def forward_and_backward() -> None:
        found = convolve(images, filters) if compiled else F.conv2d(images, filters, padding=1)
        found.sum().backward()

    return forward_and_backward


def operations_on(machine: Machine) -> str:
    """Say in words which operations a machine's network is computed with, and why."""
    if machine.device.type != "cpu":
        return f"plain operations: on {machine.device.type} torch's own are fast"
    if machine.precision != "bf16":
        return f"plain operations: the compiled ones compute in bf16, not {machine.precision}"
    return load().words
