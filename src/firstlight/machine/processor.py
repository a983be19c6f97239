"""What the processor is and offers."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

import torch


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
    it without AMX are recognised by their fp16 arithmetic.
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
