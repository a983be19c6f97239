"""The compiled kernels: built by the system's C++ compiler when first needed, and kept in the cache."""

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
_OPERANDS = {"FP16": ("-mavx512fp16",), "BF16": ()}
"""Number formats of the operands of products, the best first, each with its compiler flags."""
_COMPILERS = ("g++", "clang++", "c++")
_COMPILER_SECONDS = 120.0


@dataclass(frozen=True)
class Kernels:
    """The kernels in use.

    library: the compiled ones; None where torch's plain operations are in use.
    words: which are in use, and why.
    """

    library: ctypes.CDLL | None
    words: str

    def __bool__(self) -> bool:
        return self.library is not None

    def call(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call a kernel; a tensor is passed as the address of its first value, an int as a C long."""
        self.library[name](*map(_in_c, arguments))  # type: ignore[index]


@functools.cache
def load() -> Kernels:
    """Return the compiled kernels, built now unless they are in the cache (a few seconds, once a machine).

    They need x86-64 Linux, AVX-512 BF16 and a C++ compiler. With AMX torch's own operations are faster.
    FIRSTLIGHT_KERNELS=plain chooses torch's operations, =compiled the kernels in spite of AMX, and =bf16 the
    kernels with operands in bf16 where the chip has AVX-512 FP16 too.
    """
    if reason := _misfit():
        return Kernels(None, f"plain operations: {reason}")
    for operands in _formats():
        try:
            library = ctypes.CDLL(str(_build(_OPERANDS[operands])))
            return Kernels(library, f"compiled for AVX-512 {operands} (Winograd convolutions)")
        except _BuildError as error:
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


def _choice() -> str:
    return os.environ.get("FIRSTLIGHT_KERNELS", "")


def _formats() -> list[str]:
    """List the operands' formats that this chip multiplies and the user allows, the best first."""
    has_fp16 = cpu_has("avx512_fp16") and _choice() != "bf16"
    return [name for name in _OPERANDS if name == "BF16" or has_fp16]


class _BuildError(Exception):
    """Why there is no library, in words."""


def _misfit() -> str:
    """Say why the plain operations are in use; empty where the compiled kernels fit."""
    choice = _choice()
    if choice == "plain":
        return "FIRSTLIGHT_KERNELS=plain asks for them"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"none are compiled for {sys.platform} on {platform.machine()}"
    if not cpu_has("avx512_bf16"):
        return "no AVX-512 BF16 here"
    if cpu_has("amx_tile") and choice not in ("compiled", "bf16"):
        return "torch's own convolutions use AMX"
    # A limit to older instructions that was set for torch holds here too.
    limited = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if limited or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "torch is limited to older instructions"
    return ""


def _build(extra_flags: tuple[str, ...]) -> Path:
    """Return the library's file from the cache; compile it first where it is not there.

    Raises _BuildError where that fails.
    """
    folder = Path(__file__).parent
    sources = [(folder / name).read_bytes() for name in _SOURCES]
    openmp = _openmp()
    flags = (*_FLAGS, *extra_flags)
    build_key = repr((flags, openmp, platform.libc_ver())).encode()
    name = f"kernels-{hashlib.sha256(build_key + b''.join(sources)).hexdigest()[:16]}.so"
    cached = cache_folder() / name
    if cached.exists():
        return cached
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else _COMPILERS
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise _BuildError(f"no C++ compiler ({', '.join(compilers)})")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as temporary:
            output = Path(temporary) / name
            units = [str(folder / source) for source in _SOURCES if source.endswith(".cpp")]
            command = [compiler, *flags, *units, "-o", str(output), *openmp]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILER_SECONDS)
            if done.returncode:
                lines = (line for line in done.stderr.splitlines() if "error" in line)
                raise _BuildError(f"{compiler} failed: {next(lines, 'no reason given')}")
            ctypes.CDLL(str(output))  # a library that does not load is not kept
            output.replace(cached)
    except (OSError, subprocess.SubprocessError) as error:
        raise _BuildError(f"{compiler}: {error}") from error
    return cached


def _openmp() -> tuple[str, ...]:
    """Return linker flags for torch's own OpenMP runtime: a second one would start threads of its own."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}") if libraries else ()
