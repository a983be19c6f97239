"""The compiled operations: built by the system's C++ compiler when first needed, and kept in the cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstlight.machine.processor import cpu_has
from firstlight.machine.storage import cache_folder

_SOURCES = ("bf16.h", "products.h", "winograd.cpp", "norm.cpp")
_EXTENSIONS = tuple(f"-mavx512{name}" for name in ("f", "bw", "vl", "dq", "bf16"))
_FLAGS = ("-O3", "-std=c++17", "-mfma", *_EXTENSIONS, "-fopenmp", "-fPIC", "-shared", "-w")
_FACTORS = {"FP16": ("-mavx512fp16",), "BF16": ()}
"""In which format the factors of products may be, best first, and the flags that choose it."""
_COMPILERS = ("g++", "clang++", "c++")
_SECONDS = 120.0


@dataclass(frozen=True)
class Kernels:
    """What of the compiled operations there is.

    library: None where the plain operations serve.
    words: which operations are in use, with the reason.
    """

    library: ctypes.CDLL | None
    words: str

    def __bool__(self) -> bool:
        return self.library is not None

    def call(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call an operation; a tensor goes as the address of its first value, an int as a C long."""
        self.library[name](*map(_in_c, arguments))  # type: ignore[index]


@functools.cache
def load() -> Kernels:
    """Return the compiled operations, built now where they were not yet (a few seconds, once a machine).

    They need x86-64 Linux, AVX-512 BF16 and a C++ compiler. With AMX the operations of torch are
    faster. FIRSTLIGHT_KERNELS=plain asks for the plain ones, =compiled for these in spite of AMX, and
    =bf16 for these with factors in bf16 where the chip has AVX-512 FP16 too.
    """
    if reason := _unfit():
        return Kernels(None, f"plain operations: {reason}")
    for factors in _formats():
        try:
            library = ctypes.CDLL(str(_built(_FACTORS[factors])))
            return Kernels(library, f"compiled for AVX-512 {factors} (Winograd convolutions)")
        except _Unbuilt as error:
            reason = str(error)
    return Kernels(None, f"plain operations: {reason}")


def _in_c(argument: Tensor | float | None) -> Any:
    match argument:
        case int():
            return ctypes.c_long(argument)
        case float():
            return ctypes.c_float(argument)
        case _:
            return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def _chosen() -> str:
    return os.environ.get("FIRSTLIGHT_KERNELS", "")


def _formats() -> list[str]:
    """List the formats of factors that this chip multiplies, those that the user left, best first."""
    has_fp16 = cpu_has("avx512_fp16") and _chosen() != "bf16"
    return [name for name in _FACTORS if name == "BF16" or has_fp16]


class _Unbuilt(Exception):
    """Why there is no library, in words."""


def _unfit() -> str:
    """Say why this machine or its user wants the plain operations; nothing where the compiled ones fit."""
    chosen = _chosen()
    if chosen == "plain":
        return "FIRSTLIGHT_KERNELS=plain asks for them"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"none are compiled for {sys.platform} on {platform.machine()}"
    if not cpu_has("avx512_bf16"):
        return "no AVX-512 BF16 here"
    if cpu_has("amx_tile") and chosen not in ("compiled", "bf16"):
        return "torch's own convolutions use AMX"
    # Whoever limits torch to an older processor means all that computes.
    limited = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if limited or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "torch is limited to older instructions"
    return ""


def _built(extra: tuple[str, ...]) -> Path:
    """Return the library's file, compiled now with these flags too unless the same sources were before."""
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in _SOURCES]
    openmp = _openmp()
    flags = (*_FLAGS, *extra)
    recipe = repr((flags, openmp, platform.libc_ver())).encode()
    name = f"kernels-{hashlib.sha256(recipe + b''.join(sources)).hexdigest()[:16]}.so"
    kept = cache_folder() / name
    if kept.exists():
        return kept
    wished = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [wished] if wished else _COMPILERS)), None)
    if compiler is None:
        raise _Unbuilt(f"no C++ compiler ({wished or ', '.join(_COMPILERS)})")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as place:
            fresh = Path(place) / name
            units = [str(here / source) for source in _SOURCES if source.endswith(".cpp")]
            command = [compiler, *flags, *units, "-o", str(fresh), *openmp]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
                raise _Unbuilt(f"{compiler} failed: {said}")
            ctypes.CDLL(str(fresh))  # a library that does not load is not kept
            fresh.replace(kept)
    except (OSError, subprocess.SubprocessError) as error:
        raise _Unbuilt(f"{compiler}: {error}") from error
    return kept


def _openmp() -> tuple[str, ...]:
    """Name torch's own OpenMP runtime for the linker: a second one would bring a second set of threads."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(found[0]), f"-Wl,-rpath,{found[0].parent}") if found else ()
