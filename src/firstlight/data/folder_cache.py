"""The pixels of a folder's pictures in the user's cache, found again as long as no picture changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.data.cache import ArrayCache, npy_header_of, stamps, whole
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
        """Return rows and facts, or None where they are missing, damaged, or of other pictures."""
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
            return self._opened(arrays["images"]), facts
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def parts(self) -> Path:
        """The folder in which very many pictures are read."""
        return self.folder / f"reading-{self.key[:16]}"

    def write(self, rows: Images, train: Tensor, test: Tensor) -> str | None:
        """Write rows, those of `train` first; return their digest as `cache.digest`, or None if that fails.

        Stored rows are moved in their file, and cannot be read from it any more.
        """
        shape = (len(train) + len(test), *rows.shape[1:])
        sha = hashlib.sha256(f"images {_TYPE} {shape}\n".encode())
        try:
            if isinstance(rows, StoredImages):
                self._entry.mkdir(parents=True, exist_ok=True)
                rows.put_in_order(train, test, self._images, sha.update)
            else:
                with whole(self._images) as path, path.open("xb") as file:
                    file.write(npy_header_of(shape))
                    for part in torch.cat([train, test]).split(_WRITTEN_AT_ONCE):
                        pixels = rows[part].numpy().data
                        sha.update(pixels)
                        file.write(pixels)
        except OSError:
            return None
        return sha.hexdigest()

    def keep(self, digest: str, facts: Facts) -> tuple[Images, Facts]:
        """Keep the facts of rows that `write` wrote, by their digest; return them as `load` does."""
        with suppress(OSError):
            ArrayCache(self._entry, ("images",), digest).set_verified(stamps([self._images]))
            text = json.dumps({"key": self.key, "digest": digest, **asdict(facts)}).encode()
            with whole(self._entry / _FACTS) as path:
                path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            self._remove_old()
            shutil.rmtree(self.parts, ignore_errors=True)
        return self._opened(np.lib.format.open_memmap(self._images, mode="c")), facts

    def _opened(self, mapped: npt.NDArray[np.uint8]) -> Images:
        """Return rows as they were mapped, or stored where they exceed the memory for them."""
        return StoredImages.open(self._images) if mapped.nbytes > most_held() else torch.from_numpy(mapped)

    def _remove_old(self) -> None:
        entries = [path for path in self.folder.iterdir() if (path / _FACTS).is_file()]
        entries.sort(key=lambda path: (path / _FACTS).stat().st_mtime_ns, reverse=True)
        for path in entries[_ENTRIES:]:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def _entry(self) -> Path:
        return self.folder / self.key[:16]

    @property
    def _images(self) -> Path:
        return self._entry / "images.npy"
