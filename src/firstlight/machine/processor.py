"""The name of the processor, and what it offers."""

from __future__ import annotations

import contextlib
import platform
from typing import Any

import torch

from firstlight.machine.limits import usable_cores


def hardware_name(device: torch.device) -> str:
    """Return the name of the GPU; or that of the processor, with its usable cores and widest arithmetic."""
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
    """Whether the processor itself has a capability, in torch's words, such as "avx512_bf16"."""
    # Older versions of torch know fewer, each by a private function.
    private = getattr(torch.cpu, f"_is_{capability}_supported", lambda: False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(capability) or private())


def fast_bf16_products() -> bool:
    """Whether torch multiplies bf16 matrices faster than fp32 ones on this processor.

    Intel's do it by AMX. Where AMX is hidden, as in many virtual machines, their AVX-512 product of bf16
    pairs has half the throughput of fp32; AMD's has four times it. An Intel chip with hidden AMX is known by
    its fp16 arithmetic.
    """
    slow = cpu_has("avx512_fp16") and not cpu_has("amx_tile")
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not slow


def _vector_extension() -> str:
    """Return the name of the widest arithmetic that the processor itself has."""
    extensions = {"amx_tile": "AMX", "avx512_fp16": "AVX-512 FP16", "avx512_bf16": "AVX-512 BF16"}
    for capability, name in extensions.items():
        if cpu_has(capability):
            return name
    return torch.backends.cpu.get_cpu_capability()
