"""CIFAR-10's published files: what they are called, how they are verified, how they are decoded."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from firstlight.data.cache import Arrays, digest
from firstlight.data.download import PublishedFile
from firstlight.data.pickles import read_pickle
from firstlight.errors import InputError

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_ROW = 1 + _PIXELS  # bytes of an image in the binary form, its label first
_CLASSES = 10
_AGAIN = "Take it from its publisher again."

Batch = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # pixels, N×3072, and labels, N


def _python_batch(data: bytes, name: str) -> Batch | None:
    match read_pickle(data, name):
        case {b"data": np.ndarray() as pixels, b"labels": list() as labels} if pixels.dtype == np.uint8:
            return (pixels, np.array(labels)) if all(type(label) is int for label in labels) else None
    return None


def _binary_batch(data: bytes, name: str) -> Batch | None:
    rows = np.frombuffer(data, dtype=np.uint8, count=len(data) // _ROW * _ROW).reshape(-1, _ROW)
    return rows[:, 1:], rows[:, 0]


@dataclass(frozen=True)
class Form:
    """One form in which the set is published: an archive, which unpacks to a folder of batch files.

    batches: in order; the last holds the test images.
    read: from the bytes of a batch file and its name for messages to the batch, None where it is none.
    """

    folder: str
    archive: PublishedFile
    batches: tuple[PublishedFile, ...]
    read: Callable[[bytes, str], Batch | None]


PYTHON = Form(
    "cifar-10-batches-py",
    PublishedFile("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
    (
        PublishedFile("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
        PublishedFile("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
        PublishedFile("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
        PublishedFile("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
        PublishedFile("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        PublishedFile("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
    ),
    _python_batch,
)
BINARY = Form(
    "cifar-10-batches-bin",
    PublishedFile("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
    # The authors give no sums of these.
    tuple(PublishedFile(f"{batch.name}.bin", 10_000 * _ROW, None) for batch in PYTHON.batches),
    _binary_batch,
)


@dataclass(frozen=True)
class Edition:
    """The set as published; `digest` is of the decoded arrays, the same whichever form they came from."""

    forms: tuple[Form, ...]
    images_per_batch: int
    digest: str


_DIGEST = "5e5e71ed4630d506c7721247a52e06e4d8039bf51773ffa53a56d97866d045ee"
CIFAR10 = Edition((PYTHON, BINARY), 10_000, _DIGEST)


@dataclass(frozen=True)
class Copy:
    """A copy of the set on this disk: an archive, or a folder of batch files."""

    form: Form
    path: Path

    @property
    def files(self) -> list[tuple[Path, PublishedFile]]:
        if self.path.is_dir():
            return [(self.path / batch.name, batch) for batch in self.form.batches]
        return [(self.path, self.form.archive)]


def find(path: Path, edition: Edition) -> Copy | None:
    """Return the copy that `path` is or holds, of which nothing is verified yet, or None."""
    if path.is_file():
        size = path.stat().st_size
        forms = [form for form in edition.forms if form.archive.name == path.name]
        forms += [form for form in edition.forms if form.archive.size == size]  # a renamed archive
        return Copy(forms[0], path) if forms else None
    for form in edition.forms:
        for folder in (path, path / form.folder):
            if (folder.name == form.folder and folder.is_dir()) or (folder / form.batches[0].name).is_file():
                return Copy(form, folder)
    # The binary form first: there is no pickle in it.
    archives = [Copy(form, path / form.archive.name) for form in reversed(edition.forms)]
    return next((copy for copy in archives if copy.path.is_file()), None)


def decode(copy: Copy, edition: Edition) -> Arrays:
    """Return images (uint8, N×3×32×32) and labels (int64, N) for training and test, in the official order.

    Raises InputError, naming the file, where it does not hold what was published.
    """
    count, batches = edition.images_per_batch, len(copy.form.batches)
    images = np.empty((batches * count, *SHAPE), dtype=np.uint8)
    labels = np.empty(batches * count, dtype=np.int64)
    for number, name, data in _contents(copy):
        batch = copy.form.read(data, name)
        if batch is None or batch[0].shape != (count, _PIXELS) or batch[1].shape != (count,):
            raise InputError(f"{name} does not hold {count:,} labelled images of 32×32", _AGAIN)
        if batch[1].min() < 0 or batch[1].max() >= _CLASSES:
            raise InputError(f"{name} holds a label outside 0…9", _AGAIN)
        rows = slice(number * count, (number + 1) * count)
        images[rows], labels[rows] = batch[0].reshape(count, *SHAPE), batch[1]
    train = (batches - 1) * count
    parts = (images[:train], labels[:train], images[train:], labels[train:])
    arrays: Arrays = dict(zip(NAMES, parts, strict=True))
    if digest(arrays) != edition.digest:
        raise InputError(
            f"{copy.path} holds other images than the published ones", "Unpack the archive again."
        )
    return arrays


def _contents(copy: Copy) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, name for messages, and bytes of every batch file, each once, in any order."""
    missing = {batch.name: (number, batch.size) for number, batch in enumerate(copy.form.batches)}
    try:
        if copy.path.is_dir():
            for number, (path, _) in enumerate(copy.files):
                yield number, str(path), path.read_bytes()
            return
        with tarfile.open(copy.path, "r|gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                number, size = missing.get(name, (0, -1))
                file = archive.extractfile(member) if member.isreg() and member.size == size else None
                if file is not None:
                    del missing[name]
                    yield number, f"{copy.path}:{member.name}", file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{copy.path} cannot be read: {error}", _AGAIN) from error
    if missing:
        raise InputError(f"{copy.path} holds no whole {min(missing)}", _AGAIN)
