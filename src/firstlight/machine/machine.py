"""`Machine`: the device and the precision of a run, chosen once before it starts."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.kernels.convolution import convolve
from firstlight.machine.kernels.library import load
from firstlight.machine.limits import quota_words, usable_cores
from firstlight.machine.memory import tune_allocator
from firstlight.machine.processor import hardware_name
from firstlight.machine.ranks import ALONE, Ranks, joined

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DETERMINISM = ("draws", "bits")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    device: where the network and its batches are. precision: "fp32", "bf16" or "fp16", of activations.
    threads: of torch on the CPU. hardware: the name of the processor or GPU.
    allocator: what `tune_allocator` set. determinism: "draws" or "bits", see `choose`.
    ranks: this process among those that share the run.
    """

    device: torch.device
    precision: str
    threads: int
    hardware: str
    allocator: str = "default"
    determinism: str = "draws"
    ranks: Ranks = ALONE

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
        """Move a model to the device, in the channels-last memory format."""
        # The stubs of `Module.to` know no memory format alone.
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def synchronise(self) -> None:
        """Wait until the device has finished its work, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose(
    device: str = "auto",
    precision: str = "auto",
    *,
    determinism: str = "draws",
    tune_memory: bool = True,
    trains: bool = True,
) -> Machine:
    """Choose device and precision, and tune the memory allocator for training on a CPU.

    device: "auto" takes CUDA, else MPS, else the CPU.
    precision: "auto" is bf16 on a CUDA device where it is native, else fp16; fp32 on MPS; on a CPU bf16 where
        kernels are compiled for it, else whichever of bf16 and fp32 is faster in a short measurement.
    determinism: "draws" gives the same order, augmentation and initial weights everywhere. "bits" also makes
        a GPU compute in a fixed order, which costs speed; a CPU always does.
    trains: whether convolutions will be trained. Nothing is compiled for a network whose body is frozen.
    Raises InputError for an unknown choice, or one that this machine does not have.
    """
    for name, value, known in (
        ("level of determinism", determinism, DETERMINISM),
        ("device", device, DEVICES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}", f"Known: {', '.join(known)}.")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name in available if available[name])
    elif not available[device]:
        raise InputError(f"this torch ({torch.__version__}) sees no {device} device", "Use --device cpu.")
    if precision == "fp16" and device == "cpu":
        raise InputError("fp16 training needs a GPU", "On a CPU use --precision bf16 or fp32.")
    allocator = tune_allocator() if tune_memory and device == "cpu" else "default"
    chosen = torch.device(device)
    if precision == "auto":
        precision = joined().broadcast(_faster_precision(chosen, compiled=trains))
    fit_threads()
    if device == "cpu":
        determinism = "bits"
    elif determinism == "bits":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first call of cuBLAS
        torch.use_deterministic_algorithms(True)
    hardware, threads = hardware_name(chosen), torch.get_num_threads()
    return Machine(chosen, precision, threads, hardware, allocator, determinism, joined())


def fit_threads() -> None:
    """Let torch use no more threads than a quota of processor time is worth, unless the user chose them.

    Threads beyond a quota spend it by waiting for each other, and then all of them are stopped.
    """
    if "OMP_NUM_THREADS" not in os.environ and quota_words() and usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())


def operations_on(machine: Machine) -> str:
    """Say in words which kernels compute a network on this machine, and why."""
    if machine.device.type != "cpu":
        return f"plain operations: on {machine.device.type} torch's own are fast"
    return load(machine.dtype).words


def _faster_precision(device: torch.device, *, compiled: bool = True) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "mps":
        return "fp32"
    if compiled and load():
        return "bf16"  # its other layers gain too, from half the memory
    # Without AVX-512 or AMX bf16 arithmetic is emulated and slower than fp32, and chips with them differ in
    # speed. So the operation that training will use is timed: in turn, and the shortest of each. By one
    # thread, since several wait for the slowest of them: other work on the machine would then choose.
    convolutions = {
        name: _convolution(dtype, compiled=compiled)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
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
            if turn > 1 and max(shortest.values()) > 3 * min(shortest.values()):
                break  # as clear as that where bf16 is emulated
    finally:
        torch.set_num_threads(threads)
    return min(shortest, key=shortest.__getitem__)


def _convolution(dtype: torch.dtype, *, compiled: bool = True) -> Callable[[], None]:
    """Return one convolution, forward and backward, of a size that small networks have."""
    images = torch.ones(32, 64, 16, 16, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    compiled = compiled and bool(load(dtype))
    filters = torch.ones(64, 64, 3, 3, dtype=torch.float32 if compiled else dtype)
    filters = filters.to(memory_format=torch.channels_last).requires_grad_()

    def forward() -> Tensor:
        return convolve(images, filters, dtype=dtype) if compiled else F.conv2d(images, filters, padding=1)

    return lambda: forward().sum().backward()
