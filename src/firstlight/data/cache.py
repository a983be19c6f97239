"""The user's cache: arrays that were decoded once, kept as plain .npy files and mapped from then on."""

from __future__ import annotations

import hashlib
import json
import tokenize
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

# What NumPy was seen to raise for altered headers.
_DAMAGED = (OSError, ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)
_MOST_SOURCES = 64  # files remembered as verified; the oldest are forgotten


def digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 over the arrays' names, types, shapes and bytes, in their order."""
    sha = hashlib.sha256()
    for name, array in arrays.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def stamps(files: Sequence[Path]) -> dict[str, list[int]]:
    """Return size and time of change of each file, which show cheaply that it is still the same."""
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            state = file.stat()
            found[str(file.resolve())] = [state.st_size, state.st_mtime_ns]
        except OSError:  # a missing file equals no record
            found[str(file)] = [-1, -1]
    return found


@dataclass(frozen=True)
class KeptArrays:
    """Named arrays of known digest in a folder, with a record of what was verified.

    A file whose size and time of change are in the record was verified in full when it had them.
    """

    folder: Path
    names: tuple[str, ...]
    digest: str

    def load(self) -> Arrays | None:
        """Return the arrays, mapped copy-on-write, or None where they are missing or damaged."""
        files = [self._file(name) for name in self.names]
        try:
            loaded = [np.lib.format.open_memmap(file, mode="c") for file in files]
            arrays: Arrays = dict(zip(self.names, loaded, strict=True))
            now = stamps(files)
            if self._record("arrays") == now:
                return arrays
            whole = digest(arrays) == self.digest
        except _DAMAGED:
            return None
        if whole:
            self._remember("arrays", now)
        return arrays if whole else None

    def keep(self, arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Write the arrays, each under its name only once it is whole; False where the folder takes none.

        Processes that do this at the same time replace each other's files by the same bytes.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.names:
                aside = self.folder / f"{name}.{uuid.uuid4().hex}.part"
                try:
                    with aside.open("xb") as file:
                        np.save(file, arrays[name], allow_pickle=False)
                    aside.replace(self._file(name))
                finally:
                    aside.unlink(missing_ok=True)
            self._remember("arrays", stamps([self._file(name) for name in self.names]))
        except OSError:  # no room or no permission: the arrays in memory serve as well
            return False
        return True

    def trusts(self, seen: Mapping[str, list[int]]) -> bool:
        """Return whether all files, by their stamps, are as they were when they were verified."""
        known = self._record("sources")
        return all(known.get(path) == stamp for path, stamp in seen.items())

    def trust(self, seen: Mapping[str, list[int]]) -> None:
        """Record that the files were verified when they had these stamps."""
        known = {path: stamp for path, stamp in self._record("sources").items() if path not in seen}
        self._remember("sources", dict([*known.items(), *seen.items()][-_MOST_SOURCES:]))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        # A record that speaks of another digest vouches for nothing here.
        return record if isinstance(record, dict) and record.get("digest") == self.digest else {}

    def _record(self, part: str) -> dict[str, Any]:
        known = self._read().get(part)
        return known if isinstance(known, dict) else {}

    def _remember(self, part: str, seen: dict[str, list[int]]) -> None:
        text = json.dumps({**self._read(), "digest": self.digest, part: seen}, indent=1)
        aside = self.folder / f"record.{uuid.uuid4().hex}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            aside.replace(self.folder / "record.json")
        except OSError:  # without a record everything is verified again, which is only slower
            return
        finally:
            if aside.exists():
                aside.unlink()
