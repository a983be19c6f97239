"""The pixels of a folder's pictures in the user's cache, found again as long as no picture changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firstlight.data.cache import ArrayCache, whole
from firstlight.data.images import Images
from firstlight.data.stored import StoredImages
from firstlight.data.windows import most_held

_ENTRIES = 4
"""Entries that one folder keeps, such as those of two sides; the oldest are removed."""
_FACTS = "facts.json"
_WRITTEN_AT_ONCE = 256

_TYPE = "|u1"


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

    def load(self) -> tuple[Images, Facts] | None:
        """Return rows and facts, or None where they are missing, damaged, or of other pictures.

        Rows are mapped, or stored where they exceed the memory for them.
        """
        try:
            sha256, _, text = (self._entry / _FACTS).read_bytes().partition(b"\n")
            if sha256.decode() != hashlib.sha256(text).hexdigest():
                return None
            values = json.loads(text)
            if values.pop("key") != self.key:
                return None
            arrays = ArrayCache(self._entry, ("images",), str(values.pop("digest"))).load()
            facts = Facts(**values)
            if arrays is None:
                return None
            if arrays["images"].nbytes > most_held():
                return StoredImages.open(self._entry / "images.npy"), facts
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return torch.from_numpy(arrays["images"]), facts

    @property
    def parts(self) -> Path:
        """The folder in which very many pictures are read."""
        return self.folder / f"reading-{self.key[:16]}"

    def save(self, rows: Images, facts: Facts) -> tuple[Images, Facts]:
        """Save the rows of `facts`, train then test; return them as `load`, or as they are if that fails."""
        order = torch.tensor([*facts.train, *facts.test])
        try:
            shape = (len(order), *rows.shape[1:])
            sha = hashlib.sha256(f"images {_TYPE} {shape}\n".encode())  # as `cache.digest`
            with whole(self._entry / "images.npy") as path, path.open("xb") as file:
                header = {"descr": _TYPE, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(order), _WRITTEN_AT_ONCE):
                    part = rows[order[start : start + _WRITTEN_AT_ONCE]].numpy().tobytes()
                    sha.update(part)
                    file.write(part)
            values = {"key": self.key, "digest": sha.hexdigest(), **asdict(facts)}
            with whole(self._entry / _FACTS) as path:
                text = json.dumps(values).encode()
                path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            self._remove_old()
            shutil.rmtree(self.parts, ignore_errors=True)
        except OSError:
            return rows.index_select(0, order), facts
        return self.load() or (rows.index_select(0, order), facts)

    def _remove_old(self) -> None:
        entries = [path for path in self.folder.iterdir() if (path / _FACTS).is_file()]
        entries.sort(key=lambda path: (path / _FACTS).stat().st_mtime_ns, reverse=True)
        for path in entries[_ENTRIES:]:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _entry(self) -> Path:
        return self.folder / self.key[:16]
