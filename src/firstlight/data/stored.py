"""Images that stay in a file: rows of it are read when they are asked for."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstlight.data.cache import npy_header, npy_header_of
from firstlight.data.folder_pixels import worked_ahead
from firstlight.errors import RunFailed, printable

_MOVED_AT_ONCE = 256

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class StoredImages:
    """uint8 images N×C×H×W in a .npy file, with the methods of a tensor that `Images` names.

    Indexing reads rows and returns a tensor; `narrow` and `index_select` choose rows and read nothing. The
    file is read and not mapped: an error of the disk is then an OSError, where a map would end the process,
    and what was read once does not count as memory of this process afterwards.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, file: _File, shape: tuple[int, ...], rows: Tensor) -> None:
        self._file, self._image, self._rows = file, torch.Size(shape), rows

    @classmethod
    def open(cls, path: Path) -> StoredImages:
        """Open a .npy file of N×C×H×W bytes; raises ValueError where it is none, and OSError."""
        shape, order, dtype, offset = npy_header(path)
        if order or dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"{path} holds {dtype} of {shape}, not uint8 N×C×H×W")
        return cls(_File(path, offset), shape[1:], torch.arange(shape[0]))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), *self._image))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor | int) -> Tensor:
        """Read images."""
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        return torch.from_numpy(self.read(index if isinstance(index, slice) else index.numpy()))

    def read(self, index: slice | Indices, images: Pixels | None = None) -> Pixels:
        """Read images, into an array of their shape where there is one; neighbours come in one piece.

        Without torch, for a thread beside the training: see `WindowReader`.
        """
        rows = self._rows.numpy()[index]
        if images is None:
            images = np.empty((len(rows), *self._image), np.uint8)
        if not images.size:
            return images
        size, view = self._image.numel(), images.reshape(-1).data
        cuts = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
        firsts = rows[[0, *cuts]].tolist()
        for first, begin, end in zip(firsts, [0, *cuts], [*cuts, len(rows)], strict=True):
            self._file.read(first * size, view[begin * size : end * size])
        return images

    def index_select(self, dim: int, index: Tensor) -> StoredImages:
        """Return the images at `index`, in that order; dim: 0."""
        return StoredImages(self._file, self._image, self._rows.index_select(dim, index))

    def narrow(self, dim: int, start: int, length: int) -> StoredImages:
        """Return `length` images from `start` on; dim: 0."""
        return StoredImages(self._file, self._image, self._rows.narrow(dim, start, length))

    def split(self, split_size: int) -> Iterator[Tensor]:
        """Read all images, so many at once."""
        for start in range(0, len(self), split_size):
            yield self[start : start + split_size]

    def to(self, device: torch.device) -> Tensor:
        """Read all images into memory."""
        return self[:].to(device)

    def put_in_order(
        self, first: Tensor, then: Tensor, target: Path, seen: Callable[[memoryview], object]
    ) -> None:
        """Move images in their file: those of `first`, which ascend, then those of `then`, and no others.

        It takes no room beyond that of `then`. seen: is called with the bytes of all, in their new order.
        target: the file's new name. These images can be read no more. Raises OSError before anything was
        moved, and RunFailed after that.
        """
        path, size, count = self._file.path, self._image.numel(), len(first) + len(then)
        header = npy_header_of((count, *self._image))
        if len(header) != self._file.offset:
            raise OSError(errno.EINVAL, "a header of another length", str(path))
        with tempfile.TemporaryFile(dir=path.parent) as aside:
            for rows in then.split(_MOVED_AT_ONCE):
                aside.write(self.read(rows.numpy()).data)
            aside.flush()
            try:
                with path.open("r+b") as file, ThreadPoolExecutor(1) as pool:
                    file.seek(self._file.offset)
                    # An image moves towards the beginning, so what is read ahead was not written over.
                    parts = (rows.numpy() for rows in first.split(_MOVED_AT_ONCE))
                    for images in worked_ahead(pool, self.read, parts, 2):
                        seen(images.data)
                        file.write(images.data)
                    aside.seek(0)
                    while part := aside.read(_MOVED_AT_ONCE * size):
                        seen(memoryview(part))
                        file.write(part)
                    file.truncate()
                    file.seek(0)
                    file.write(header)
                self._file.close()
                path.replace(target)
            except OSError as error:
                words = f"cannot write {printable(path)}: {printable(error.strerror or error)}"
                raise RunFailed(words, "The same command reads again what was moved.") from error


class _File:
    """A file from which threads may read, closed with the last of the images that need it.

    Held open, so that an entry of the cache may be removed meanwhile.
    """

    def __init__(self, path: Path, offset: int) -> None:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.close = weakref.finalize(self, os.close, handle)
        self.path, self.offset, self._lock = path, offset, threading.Lock()
        self._raw = io.FileIO(handle, closefd=False)

    def read(self, position: int, view: memoryview) -> None:
        """Fill a view from a position behind the header."""
        with self._lock:
            self._raw.seek(self.offset + position)
            done = 0
            while done < len(view):
                count = self._raw.readinto(view[done:])
                if not count:
                    raise OSError(f"{printable(self.path)} ends early")
                done += count
