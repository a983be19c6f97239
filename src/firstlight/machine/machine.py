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
    """The device and the precision of a run, and what they run on.

    precision: fp32, bf16 or fp16. allocator: what `tune_allocator` set. determinism: see `choose`.
    """

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
        """Wait until the device has finished, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose(
    device: str = "auto", precision: str = "auto", *, determinism: str = "draws", tune_memory: bool = True
) -> Machine:
    """Choose device and precision, and set the memory allocator for training.

    determinism: "draws" gives the same order, augmentation and initial weights everywhere; "bits" makes a
        GPU, at some cost, also repeat its arithmetic bit by bit, as a CPU always does.

    On a CPU `auto` precision is whichever of bf16 and fp32 is faster in a short measurement; on a
    CUDA device bf16 where it is native, else fp16; on MPS fp32.
    """
    for name, value, known in (
        ("level of determinism", determinism, DETERMINISM),
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}", f"Known: {', '.join(known)}.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    elif not available[device]:
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
        # cuBLAS needs it before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Machine(chosen, precision, torch.get_num_threads(), hardware_name(chosen), allocator, determinism)


def operations_on(machine: Machine) -> str:
    """Say in words which kernels are in use on a machine, and why."""
    if machine.device.type != "cpu":
        return f"plain operations: on {machine.device.type} torch's own are fast"
    if machine.precision != "bf16":
        return f"plain operations: the compiled ones compute in bf16, not {machine.precision}"
    return load().words


def _faster_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "mps":
        return "fp32"
    # Chips differ in how fast their bf16 is, and emulate it without AVX-512 or AMX: so measure the operation
    # that training uses. In turn, the shortest of each, on a single thread: with several threads, other work
    # on the machine would decide.
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
        outputs = convolve(images, filters) if compiled else F.conv2d(images, filters, padding=1)
        outputs.sum().backward()

    return forward_and_backward
