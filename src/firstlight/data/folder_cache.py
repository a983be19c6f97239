"""The pixels of a folder's pictures in the user's cache, found again as long as no picture changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.data.cache import ArrayCache, whole

_ENTRIES = 4
"""Entries that one folder keeps, such as those of two sides; the oldest are removed."""
_FACTS = "facts.json"
_WRITTEN_AT_ONCE = 256

Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Facts:
    """What was found when the pictures were read.

    train, test: indices into the listing, in the order of the rows: first training, then test images.
    unreadable: index and reason. mean, std: of the training images. side, median: see `choose_side`.
    notes: what a person should know.
    """

    train: list[int]
    test: list[int]
    unreadable: list[tuple[int, str]]
    mean: list[float]
    std: list[float]
    side: int
    median: int
    notes: list[str]


def key_of(*values: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class FolderCache:
    """The entries of one folder of pictures. key: of all on which rows and facts depend."""

    folder: Path
    key: str

    def load(self) -> tuple[Rows, Facts] | None:
        """Return rows (mapped) and facts, or None where they are missing, damaged, or of other pictures."""
        try:
            sha256, _, text = (self._entry / _FACTS).read_bytes().partition(b"\n")
            if sha256.decode() != hashlib.sha256(text).hexdigest():
                return None
            values = json.loads(text)
            if values.pop("key") != self.key:
                return None
            arrays = ArrayCache(self._entry, ("images",), str(values.pop("digest"))).load()
            facts = Facts(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return None if arrays is None else (arrays["images"], facts)

    def save(self, rows: Rows, facts: Facts) -> tuple[Rows, Facts]:
        """Save the rows of `facts`, train then test; return them mapped, or as they are where that fails."""
        order = [*facts.train, *facts.test]
        try:
            shape = (len(order), *rows.shape[1:])
            sha = hashlib.sha256(f"images {rows.dtype.str} {shape}\n".encode())  # as `cache.digest`
            with whole(self._entry / "images.npy") as path, path.open("xb") as file:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(order), _WRITTEN_AT_ONCE):
                    part = rows[order[start : start + _WRITTEN_AT_ONCE]].tobytes()
                    sha.update(part)
                    file.write(part)
            values = {"key": self.key, "digest": sha.hexdigest(), **asdict(facts)}
            with whole(self._entry / _FACTS) as path:
                text = json.dumps(values).encode()
                path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            self._remove_old()
        except OSError:
            return rows[order], facts
        return self.load() or (rows[order], facts)

    def _remove_old(self) -> None:
        entries = [path for path in self.folder.iterdir() if (path / _FACTS).is_file()]
        entries.sort(key=lambda path: (path / _FACTS).stat().st_mtime_ns, reverse=True)
        for path in entries[_ENTRIES:]:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _entry(self) -> Path:
        return self.folder / self.key[:16]
