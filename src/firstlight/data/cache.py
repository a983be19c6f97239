"""The user's cache: arrays that were decoded once, saved as plain .npy files and mapped from then on."""

from __future__ import annotations

import hashlib
import io
import tokenize
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

# What NumPy was seen to raise for altered headers.
_DAMAGED = (OSError, ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)
_READ_AT_ONCE = 2**20
_MOST_STAMPS = 128  # the oldest are forgotten


def digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 over the arrays' names, types, shapes and bytes, in their order."""
    sha = hashlib.sha256()
    for name, array in arrays.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def stamps(paths: Sequence[Path]) -> list[str]:
    """Return path, size, place and times of change of each file, which show that it is still the same."""

    def stamp(path: Path) -> str:
        try:
            state = path.stat()
        except OSError:
            return f"{path} is missing"
        # The last is set by the system at every change, whatever a program then says of the others.
        times = f"{state.st_mtime_ns} {state.st_ctime_ns}"
        return f"{path.resolve()} {state.st_size} {state.st_ino} {times}"

    return [stamp(path) for path in paths]


@dataclass(frozen=True)
class ArrayCache:
    """Named arrays of known digest in a folder, and a list of the files that were verified against it."""

    folder: Path
    names: tuple[str, ...]
    digest: str

    def load(self) -> Arrays | None:
        """Return the arrays, mapped copy-on-write, or None where they are missing or damaged."""
        try:
            mapped = [np.lib.format.open_memmap(path, mode="c") for path in self._paths]
            arrays: Arrays = dict(zip(self.names, mapped, strict=True))
            current = stamps(self._paths)
            if not self.is_verified(current):
                if self._digest() != self.digest:
                    return None
                self.set_verified(current)
        except _DAMAGED:
            return None
        return arrays

    def save(self, arrays: Arrays) -> Arrays:
        """Save the arrays and return them mapped, or as they are where the folder cannot be written.

        Processes that do this at the same time replace each other's files by the same bytes.
        """
        try:
            for name, path in zip(self.names, self._paths, strict=True):
                with whole(path) as temporary, temporary.open("xb") as file:
                    np.save(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            self.set_verified(stamps(self._paths))
        except OSError:
            return arrays
        return self.load() or arrays

    def is_verified(self, current: Sequence[str]) -> bool:
        """Return whether all files have the stamps that they had when they were verified."""
        return set(current) <= set(self._verified())

    def set_verified(self, current: Sequence[str]) -> None:
        """Record the stamps of files that were just verified."""
        lines = dict.fromkeys([*self._verified(), *current])
        # Files that are not recorded are verified again, which is only slower.
        with suppress(OSError), whole(self.folder / "verified.txt") as path:
            path.write_bytes("\n".join([*lines][-_MOST_STAMPS:]).encode(errors="surrogateescape"))

    def _digest(self) -> str:
        """Return `digest` of the arrays, read piece by piece, so that none of it counts as this process's."""
        sha = hashlib.sha256()
        for name, path in zip(self.names, self._paths, strict=True):
            shape, by_columns, dtype, offset = npy_header(path)
            if by_columns:
                return ""
            sha.update(f"{name} {dtype.str} {shape}\n".encode())
            with path.open("rb") as file:
                file.seek(offset)
                while part := file.read(_READ_AT_ONCE):
                    sha.update(part)
        return sha.hexdigest()

    def _verified(self) -> list[str]:
        try:
            return (self.folder / "verified.txt").read_bytes().decode(errors="surrogateescape").split("\n")
        except OSError:
            return []

    @property
    def _paths(self) -> list[Path]:
        return [self.folder / f"{name}.npy" for name in self.names]


def npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether columns come first, type, and where the values begin in a .npy file.

    Raises OSError, ValueError, and what else NumPy raises for a damaged header.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path} has a header of version {version}")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, by_columns, dtype, file.tell()


def npy_header_of(shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of uint8 values; of as many bytes whatever the first size is."""
    header = io.BytesIO()
    values = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, values)
    return header.getvalue()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file gets its own name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
