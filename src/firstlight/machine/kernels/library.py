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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstlight.errors import InputError, printable
from firstlight.machine.processor import cpu_has
from firstlight.machine.storage import cache_folder

_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w")
_AVX512 = ("-mfma", *(f"-mavx512{name}" for name in ("f", "bw", "vl", "dq")))
_COMPILERS = ("g++", "clang++", "c++")
_COMPILER_SECONDS = 120.0
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Variant:
    """One way to compile the kernels for a number format of images.

    name: what the user reads. flags: of the compiler. tile: outputs of a Winograd tile along a side.
    factor: type of a transformed value.
    large_tiles: larger tiles, for images whose sides they divide: gradients always take them, outputs where
        they are asked to.
    """

    name: str
    flags: tuple[str, ...]
    sources: tuple[str, ...]
    tile: int
    factor: torch.dtype
    large_tiles: tuple[int, ...] = ()


_BF16_HEADERS = ("scratch.h", "bf16.h", "products.h", "both_ways.h", "vector.h", "tiles.h")
_FP16_SOURCES = (*_BF16_HEADERS, "winograd.cpp", "strided.cpp", "norm.cpp")
_BF16_SOURCES = (*_FP16_SOURCES, "winograd_large.cpp")
_FP32_HEADERS = ("scratch.h", "vector.h", "products_fp32.h", "both_ways.h", "tiles.h")
_FP32_SOURCES = (*_FP32_HEADERS, "winograd_fp32.cpp", "norm_fp32.cpp")
_FP32_FLAGS = ("-ffp-contract=fast",)
_BF16_FLAGS = (*_AVX512, "-mavx512bf16")
_FP16 = Variant("AVX-512 FP16", (*_BF16_FLAGS, "-mavx512fp16"), _FP16_SOURCES, 2, torch.int16)
_BF16 = Variant("AVX-512 BF16", _BF16_FLAGS, _BF16_SOURCES, 2, torch.int16, large_tiles=(4, 3))
_AVX2 = Variant("AVX2", (*_FP32_FLAGS, "-mavx2", "-mfma"), _FP32_SOURCES, 4, torch.float32)
_AVX512F = replace(_AVX2, name="AVX-512", flags=(*_AVX2.flags, *_AVX512))
_NEON = replace(_AVX2, name="NEON", flags=_FP32_FLAGS)


@dataclass(frozen=True)
class Kernels:
    """The kernels in use for images of one number format.

    library: the compiled ones; None where torch's plain operations are in use.
    words: which are in use, and why. variant: how they were compiled.
    """

    library: ctypes.CDLL | None
    words: str
    variant: Variant = _BF16

    def __bool__(self) -> bool:
        return self.library is not None

    def call(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call a kernel; a tensor is passed as the address of its first value, an int as a C long."""
        self.library[name](*map(_in_c, arguments))  # type: ignore[index]


def places_of(tile: int) -> int:
    """Return how many values of a patch give a tile of outputs."""
    return (tile + 2) ** 2


@functools.cache
def load(dtype: torch.dtype = torch.bfloat16) -> Kernels:
    """Return the compiled kernels, built now unless they are in the cache (a few seconds, once a machine).

    dtype: of the images, bf16 or fp32. They need x86-64 Linux and a C++ compiler; for bf16 AVX-512 BF16, for
    fp32 AVX2. With AMX torch's own operations are faster in bf16. FIRSTLIGHT_KERNELS limits them: =plain
    chooses torch's operations, =compiled the kernels in spite of AMX, =bf16 operands in bf16 where the chip
    has AVX-512 FP16 too, =avx512 and =avx2 those of fp32 for these instructions. On aarch64 Linux =neon
    chooses those of fp32 for NEON, whose speed nobody has measured yet; nothing else does.
    """
    if reason := _misfit(dtype):
        return Kernels(None, f"plain operations: {reason}")
    for variant in _variants(dtype):
        try:
            words = f"compiled for {variant.name} (Winograd convolutions)"
            return Kernels(_build(variant), words, variant)
        except _BuildError as error:
            reason = str(error)
    return Kernels(None, f"plain operations: {reason}")


def is_built(dtype: torch.dtype) -> bool:
    """Whether the cache holds the kernels that `load` would return, so that nothing is compiled."""
    if _misfit(dtype):
        return False
    cache = _cache()
    return cache is not None and any(cache.glob(f"{_stem(_variants(dtype)[0])}-*.so"))


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


def _variants(dtype: torch.dtype) -> list[Variant]:
    """List the variants that this chip can run and the user allows, the best first."""
    if dtype == torch.float32:
        if platform.machine() == "aarch64":
            return [_NEON]
        wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _choice() != "avx2"
        return [_AVX512F, _AVX2] if wide else [_AVX2]
    has_fp16 = cpu_has("avx512_fp16") and _choice() != "bf16"
    return [_FP16, _BF16] if has_fp16 else [_BF16]


class _BuildError(Exception):
    """Why there is no library, in words."""


def _misfit(dtype: torch.dtype) -> str:
    """Say why the plain operations are in use; empty where the compiled kernels fit."""
    choice = _choice()
    if choice == "plain":
        return "FIRSTLIGHT_KERNELS=plain asks for them"
    if (sys.platform, platform.machine()) == ("linux", "aarch64") and dtype == torch.float32:
        return "" if choice == "neon" else "those for NEON are taken with FIRSTLIGHT_KERNELS=neon alone"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"none are compiled for {sys.platform} on {platform.machine()}"
    # A limit to older instructions that was set for torch holds here too.
    capability = torch.backends.cpu.get_cpu_capability()
    if dtype == torch.float32:
        return "" if capability.startswith(("AVX2", "AVX512")) else "no AVX2 here"
    if choice in ("avx512", "avx2", "neon"):
        return f"FIRSTLIGHT_KERNELS={choice} allows none in bf16"
    if not cpu_has("avx512_bf16"):
        return "no AVX-512 BF16 here"
    if cpu_has("amx_tile") and choice not in ("compiled", "bf16"):
        return "torch's own convolutions use AMX"
    if not capability.startswith("AVX512") or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "torch is limited to older instructions"
    return ""


def _build(variant: Variant) -> ctypes.CDLL:
    """Return the library from the cache; compile it first where it is not there, or is damaged.

    Raises _BuildError where that fails.
    """
    folder = Path(__file__).parent
    openmp = _openmp()
    flags = (*_FLAGS, *variant.flags)
    stem, cache = _stem(variant), _cache()
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
            units = [str(folder / source) for source in variant.sources if source.endswith(".cpp")]
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


def _stem(variant: Variant) -> str:
    """Return what the name of a library begins with: the same sources and flags, the same name."""
    sources = [(Path(__file__).parent / name).read_bytes() for name in variant.sources]
    build_key = repr(((*_FLAGS, *variant.flags), _openmp(), platform.libc_ver())).encode()
    return f"kernels-{hashlib.sha256(build_key + b''.join(sources)).hexdigest()[:16]}"


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
    library = None
    try:
        state = os.fstat(file)
        if state.st_uid not in (0, os.getuid()) or state.st_mode & 0o022:
            return None
        with os.fdopen(os.dup(file), "rb") as stream:
            digest = hashlib.sha256(stream.read(_MOST_BYTES)).hexdigest()[:32]
        if not path.name.endswith(f"-{digest}.so"):
            return None
        # By its descriptor, so that what is loaded is what was read, whoever replaces the name meanwhile. It
        # stays open: the loader takes a second library of the same name, a number here, for the first.
        library = ctypes.CDLL(f"/proc/self/fd/{file}")
        return library
    except OSError:
        return None
    finally:
        if library is None:
            os.close(file)


def _openmp() -> tuple[str, ...]:
    """Return linker flags for torch's own OpenMP runtime: a second one would start threads of its own."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}") if libraries else ()
