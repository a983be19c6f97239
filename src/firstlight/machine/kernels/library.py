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
_FORMATS = {"FP16": ("-mavx512fp16",), "BF16": ()}
"""The formats of the factors in a matrix product, best first, and the compiler flags of each."""
_COMPILERS = ("g++", "clang++", "c++")
_SECONDS = 120.0


@dataclass(frozen=True)
class Kernels:
    """The compiled operations, where there are any.

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
    for name in _formats():
        try:
            library = ctypes.CDLL(str(_built(_FORMATS[name])))
            return Kernels(library, f"compiled for AVX-512 {name} (Winograd convolutions)")
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
    """List the formats that this chip multiplies and that FIRSTLIGHT_KERNELS allows, best first."""
    has_fp16 = cpu_has("avx512_fp16") and _chosen() != "bf16"
    return [name for name in _FORMATS if name == "BF16" or has_fp16]


class _Unbuilt(Exception):
    """The reason why there is no library."""


def _unfit() -> str:
    """Return why the plain operations are used; an empty string where the compiled ones can be."""
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
    """Return the library's file; compile it, with these flags too, unless the cache has it."""
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in _SOURCES]
    openmp = _openmp()
    flags = (*_FLAGS, *extra)
    build_key = repr((flags, openmp, platform.libc_ver())).encode()
    name = f"kernels-{hashlib.sha256(build_key + b''.join(sources)).hexdigest()[:16]}.so"
    library = cache_folder() / name
    if library.exists():
        return library
    compilers = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise _Unbuilt(f"no C++ compiler ({', '.join(compilers)})")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / name
            units = [str(here / source) for source in _SOURCES if source.endswith(".cpp")]
            command = [compiler, *flags, *units, "-o", str(fresh), *openmp]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode:
                lines = (line for line in done.stderr.splitlines() if "error" in line)
                raise _Unbuilt(f"{compiler} failed: {next(lines, 'no reason given')}")
            ctypes.CDLL(str(fresh))  # a library that does not load never enters the cache
            fresh.replace(library)
    except (OSError, subprocess.SubprocessError) as error:
        raise _Unbuilt(f"{compiler}: {error}") from error
    return library


def _openmp() -> tuple[str, ...]:
    """Name torch's own OpenMP runtime for the linker: a second one would bring a second set of threads."""
    files = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(files[0]), f"-Wl,-rpath,{files[0].parent}") if files else ()
