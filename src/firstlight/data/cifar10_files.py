"""CIFAR-10's published files: what they are called, how they are verified, how they are decoded."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from firstlight.data.cache import Arrays, digest
from firstlight.data.download import PublishedFile, check_file
from firstlight.data.pickles import read_pickle
from firstlight.errors import InputError

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_CLASSES = 10
_FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


@dataclass(frozen=True)
class Edition:
    """The set as published, in both forms.

    batches: the files of the Python form, in order; the last holds the test images.
    digest: of the decoded arrays, the same whichever form they came from.
    """

    batches: tuple[PublishedFile, ...]
    python_archive: PublishedFile
    binary_archive: PublishedFile
    images_per_batch: int
    digest: str

    def files(self, form: str) -> tuple[PublishedFile, ...]:
        """Return the batch files of one form; for the binary ones the authors give no sums."""
        if form == "python":
            return self.batches
        size = self.images_per_batch * (1 + _PIXELS)
        return tuple(PublishedFile(f"{batch.name}.bin", size, None) for batch in self.batches)


CIFAR10 = Edition(
    batches=(
        PublishedFile("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
        PublishedFile("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
        PublishedFile("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
        PublishedFile("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
        PublishedFile("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        PublishedFile("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
    ),
    python_archive=PublishedFile("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
    binary_archive=PublishedFile("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
    images_per_batch=10_000,
    digest="5e5e71ed4630d506c7721247a52e06e4d8039bf51773ffa53a56d97866d045ee",
)


@dataclass(frozen=True)
class FoundCopy:
    """A copy of the set on this disk: an archive, or a folder of batch files."""

    form: Literal["python", "binary"]
    files: tuple[tuple[Path, PublishedFile], ...]
    packed: bool

    @property
    def paths(self) -> list[Path]:
        return [path for path, _ in self.files]

    @property
    def has_sums(self) -> bool:
        """Whether the authors give a sum for every file, so that `check` proves what they hold."""
        return all(published.md5 for _, published in self.files)

    def check(self) -> None:
        """Raise InputError, naming the file, where one is missing, cut short or altered."""
        for path, published in self.files:
            check_file(path, published)


def find(place: Path, edition: Edition) -> FoundCopy | None:
    """Return the copy that `place` is or holds, of which nothing is verified yet, or None."""
    if place.is_file():
        return _archive(place, edition)
    forms: tuple[Literal["python"], Literal["binary"]] = ("python", "binary")
    for form in forms:
        files = edition.files(form)
        for folder in (place, place / _FOLDERS[form]):
            named = folder.name == _FOLDERS[form] and folder.is_dir()
            if named or (folder / files[0].name).is_file():
                return FoundCopy(form, tuple((folder / file.name, file) for file in files), packed=False)
    for archive in (edition.binary_archive, edition.python_archive):
        if (place / archive.name).is_file():
            return _archive(place / archive.name, edition)
    return None


def _archive(path: Path, edition: Edition) -> FoundCopy | None:
    """Return the archive at `path`, told by its size where it was renamed."""
    size = path.stat().st_size
    forms: tuple[tuple[Literal["python", "binary"], PublishedFile], ...]
    forms = (("binary", edition.binary_archive), ("python", edition.python_archive))
    named = [(form, file) for form, file in forms if path.name == file.name]
    sized = [(form, file) for form, file in forms if size == file.size]
    for form, file in named or sized:
        return FoundCopy(form, ((path, file),), packed=True)
    return None


def decode(copy: FoundCopy, edition: Edition) -> Arrays:
    """Return images (uint8, N×3×32×32) and labels (int64, N) for training and test, in the official order.

    Raises InputError, naming the file, where it does not hold what was published.
    """
    count, last = edition.images_per_batch, len(edition.batches) - 1
    images = np.empty(((last + 1) * count, *SHAPE), dtype=np.uint8)
    labels = np.empty((last + 1) * count, dtype=np.int64)
    for number, name, data in _batches(copy, edition):
        part = slice(number * count, (number + 1) * count)
        batch = _python_batch(data, name) if copy.form == "python" else _binary_batch(data, name)
        if batch[0].shape != (count, _PIXELS) or batch[1].shape != (count,):
            raise InputError(
                f"{name} does not hold {count:,} images of 32×32", "Take it from its publisher again."
            )
        if batch[1].min() < 0 or batch[1].max() >= _CLASSES:
            raise InputError(f"{name} holds a label outside 0…9", "Take it from its publisher again.")
        images[part], labels[part] = batch[0].reshape(count, *SHAPE), batch[1]
    train = last * count
    parts = (images[:train], labels[:train], images[train:], labels[train:])
    arrays: Arrays = dict(zip(NAMES, parts, strict=True))
    if digest(arrays) != edition.digest:
        where = copy.paths[0] if copy.packed else copy.paths[0].parent
        raise InputError(f"{where} holds other images than the published ones", "Unpack the archive again.")
    return arrays


def _batches(copy: FoundCopy, edition: Edition) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, name for messages, and bytes of every batch file, each once, in any order."""
    if not copy.packed:
        for number, path in enumerate(copy.paths):
            try:
                yield number, str(path), path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        return
    archive = copy.paths[0]
    wanted = {file.name: (number, file.size) for number, file in enumerate(edition.files(copy.form))}
    hint = "Take the archive from its publisher again."
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                number, size = wanted.get(PurePosixPath(member.name).name, (0, -1))
                content = members.extractfile(member) if member.isreg() and member.size == size else None
                if content is not None:
                    del wanted[PurePosixPath(member.name).name]
                    yield number, f"{archive}:{member.name}", content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}", hint) from error
    if wanted:
        raise InputError(f"{archive} holds no whole {min(wanted)}", hint)


def _python_batch(data: bytes, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    batch = read_pickle(data, name)
    images = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    whole = isinstance(labels, list) and all(type(label) is int and 0 <= label < _CLASSES for label in labels)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or not whole:
        raise InputError(
            f"{name} holds no images and labels of CIFAR-10", "Take it from its publisher again."
        )
    return images, np.array(labels, dtype=np.int64)


def _binary_batch(data: bytes, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if len(data) % (1 + _PIXELS):
        raise InputError(f"{name} is cut short or altered", "Take it from its publisher again.")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)
