"""The name of the processor, and what it offers."""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections.abc import Mapping
from typing import Any

import torch

from firstlight.machine.limits import usable_cores

_AMD = {
    23: {range(0x30): "Zen", range(0x30, 0x100): "Zen 2"},
    25: {
        **{range(0x10): "Zen 3", range(0x20, 0x60): "Zen 3"},
        **{range(0x10, 0x20): "Zen 4", range(0x60, 0x80): "Zen 4", range(0xA0, 0xB0): "Zen 4"},
    },
    26: {range(0x100): "Zen 5"},
}
"""Micro-architectures by the family and the model of the processor, as it states them."""
_INTEL = {
    **dict.fromkeys((0x3C, 0x3F, 0x45, 0x46), "Haswell"),
    **dict.fromkeys((0x3D, 0x47, 0x4F, 0x56), "Broadwell"),
    **dict.fromkeys((0x4E, 0x5E, 0x55), "Skylake"),
    **dict.fromkeys((0x8E, 0x9E, 0xA5, 0xA6), "Kaby, Coffee or Comet Lake"),
    **dict.fromkeys((0x6A, 0x6C, 0x7D, 0x7E), "Ice Lake"),
    **dict.fromkeys((0x8C, 0x8D), "Tiger Lake"),
    **dict.fromkeys((0x97, 0x9A), "Alder Lake"),
    **dict.fromkeys((0xB7, 0xBA, 0xBF), "Raptor Lake"),
    **{0x8F: "Sapphire Rapids", 0xCF: "Emerald Rapids", 0xAD: "Granite Rapids", 0xAA: "Meteor Lake"},
}
"""Micro-architectures of family 6 by the model."""


def hardware_name(device: torch.device) -> str:
    """Return the name of the GPU; or that of the processor, with its usable cores and widest arithmetic.

    Processors of one name can differ by a factor of two in speed, so the micro-architecture stands behind it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = _processor_facts()
    model = facts.get("model name") or platform.processor() or platform.machine()
    kind = microarchitecture(facts)
    name = f"{model}{f' ({kind})' if kind else ''}, {usable_cores()} cores, {_vector_extension()}"
    return f"{name}, MPS" if device.type == "mps" else name


def _processor_facts() -> dict[str, str]:
    """Return what Linux says of the first processor, by its own names; nothing elsewhere."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        first = itertools.takewhile(str.strip, lines)
        pairs = (line.partition(":") for line in first)
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def microarchitecture(facts: Mapping[str, str]) -> str:
    """Name the micro-architecture of a processor, family and model where it is unknown; "" without these.

    facts: `vendor_id`, `cpu family` and `model`, as Linux names them.
    """
    try:
        family, model = int(facts["cpu family"]), int(facts["model"])
    except (KeyError, ValueError):
        return ""
    name = None
    if facts.get("vendor_id") == "AuthenticAMD":
        name = next((name for models, name in _AMD.get(family, {}).items() if model in models), None)
    elif facts.get("vendor_id") == "GenuineIntel" and family == 6:
        name = _INTEL.get(model)
    return name or f"family {family}, model {model}"


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
