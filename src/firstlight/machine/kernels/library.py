"""The compiled kernels: built by the system's C++ compiler when first needed, and kept in the cache."""

from __future__ import annotations

import contextlib
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

from firstlight.errors import InputError, printable
from firstlight.machine.processor import cpu_has
from firstlight.machine.storage import cache_folder

_SOURCES = ("bf16.h", "products.h", "winograd.cpp", "norm.cpp")
_EXTENSIONS = tuple(f"-mavx512{name}" for name in ("f", "bw", "vl", "dq", "bf16"))
_FLAGS = ("-O3", "-std=c++17", "-mfma", *_EXTENSIONS, "-fopenmp", "-fPIC", "-shared", "-w")
_OPERANDS = {"FP16": ("-mavx512fp16",), "BF16": ()}
"""Number formats of the operands of products, the best first, each with its compiler flags."""
_COMPILERS = ("g++", "clang++", "c++")
_COMPILER_SECONDS = 120.0
_MOST_BYTES = 2**26


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
            library = _build(_OPERANDS[operands])
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


def _build(extra_flags: tuple[str, ...]) -> ctypes.CDLL:
    """Return the library from the cache; compile it first where it is not there, or is damaged.

    Raises _BuildError where that fails.
    """
    folder = Path(__file__).parent
    sources = [(folder / name).read_bytes() for name in _SOURCES]
    openmp = _openmp()
    flags = (*_FLAGS, *extra_flags)
    build_key = repr((flags, openmp, platform.libc_ver())).encode()
    stem = f"kernels-{hashlib.sha256(build_key + b''.join(sources)).hexdigest()[:16]}"
    cache = _cache()
    for cached in sorted(cache.glob(f"{stem}-*.so")) if cache is not None else ():
        library = _verified(cached)
        if library is not None:
            return library
        with contextlib.suppress(OSError):
            cached.unlink()
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else _COMPILERS
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise _BuildError(f"no C++ compiler ({', '.join(compilers)})")
    try:
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as temporary:
            output = Path(temporary) / f"{stem}.so"
            units = [str(folder / source) for source in _SOURCES if source.endswith(".cpp")]
            command = [compiler, *flags, *units, "-o", str(output), *openmp]
            # The compiler's own temporary files lie there too: the usual place may be full.
            variables = {**os.environ, "TMPDIR": temporary}
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                timeout=_COMPILER_SECONDS,
                env=variables,
            )
            if done.returncode:
                lines = (line for line in done.stderr.splitlines() if "error" in line)
                raise _BuildError(f"{compiler} failed: {printable(next(lines, 'no reason given'))}")
            library = ctypes.CDLL(str(output))  # a library that does not load is not kept
            if cache is not None:
                digest = hashlib.sha256(output.read_bytes()).hexdigest()[:32]
                os.chmod(output, 0o755)
                # Loaded and kept are the same file; a second process that does this replaces it by its own.
                output.replace(cache / f"{stem}-{digest}.so")
            return library
    except (OSError, subprocess.SubprocessError) as error:
        raise _BuildError(f"{compiler}: {printable(error)}") from error


def _cache() -> Path | None:
    """Return the folder of the library; None where it cannot be written, and each process builds its own."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, InputError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _verified(path: Path) -> ctypes.CDLL | None:
    """Load a cached library whose bytes are those that its name states; None for any other.

    A library is code, so one that another user owns or may write to is not loaded either.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        state = os.fstat(file)
        if state.st_uid not in (0, os.getuid()) or state.st_mode & 0o022:
            return None
        with os.fdopen(os.dup(file), "rb") as stream:
            digest = hashlib.sha256(stream.read(_MOST_BYTES)).hexdigest()[:32]
        if not path.name.endswith(f"-{digest}.so"):
            return None
        # By its descriptor, so that what is loaded is what was read, whoever replaces the name meanwhile.
        return ctypes.CDLL(f"/proc/self/fd/{file}")
    except OSError:
        return None
    finally:
        os.close(file)


def _openmp() -> tuple[str, ...]:
    """Return linker flags for torch's own OpenMP runtime: a second one would start threads of its own."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}") if libraries else ()
