"""A person's own pictures: a folder of class sub-folders, a table of file and label, or an archive."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from firstlight.data.archives import is_archive, unpacked
from firstlight.data.folder_cache import Facts, FolderCache, key_of
from firstlight.data.folder_files import Listing, NoClasses, Picture, classes_of, list_folder
from firstlight.data.folder_parts import MANY, only_reader, read_in_parts
from firstlight.data.folder_pixels import SIDES, Pixels, choose_side, read_pixels, reading_rule
from firstlight.data.folder_split import MOST_COMPARED, held_out, look_alikes
from firstlight.data.folder_table import SUFFIXES, find_table, list_table
from firstlight.data.image_files import FITS
from firstlight.data.images import DataFacts, Images, ImageSet, statistics
from firstlight.data.names import several
from firstlight.data.whole_pictures import whole
from firstlight.errors import InputError, printable
from firstlight.machine.storage import cache_folder

_FEWEST, _MOST = SIDES[0], SIDES[-1]


@dataclass(frozen=True)
class Folder:
    """Pictures in class sub-folders, with or without train, valid and test above them, or named by a CSV.

    path: the folder, the CSV of file and label, or a zip or tar of either; `load` may be given another.
    side: height and width to which pictures are brought, 32 to 224; none chooses it from their sizes.
    largest: the largest side that is chosen where `side` is none.
    fit: how a picture becomes square: "crop" (its centre), "pad" (on white) or "stretch".
    test_share: share of each class that is held out for the test where there is no test folder.
    seed: of that split.
    """

    name: ClassVar[str] = "folder"

    path: str | Path = ""
    side: int | None = None
    largest: int = _MOST
    fit: str = "crop"
    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))  # a recipe's file keeps text
        for key, side in (("side", self.side), ("largest", self.largest)):
            if side is not None and not _FEWEST <= side <= _MOST:
                raise InputError(f"{key} must be {_FEWEST} to {_MOST} pixels, not {side}")
        if self.fit not in FITS:
            raise InputError(f"fit cannot be {self.fit!r}", f"Known: {', '.join(FITS)}.")
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share must be above 0 and below 1, not {self.test_share}")

    def facts(self) -> DataFacts | None:
        """Return None: only the pictures tell."""
        return None

    def load(self, data_dir: Path | None = None) -> tuple[ImageSet, ImageSet]:
        """Return (train, test), memory-mapped where a cache can be kept; names are paths in the folder.

        `data_dir` stands in for `path`. The classes are those of the training images. The notes of
        the training images say what was chosen and what was left out.

        Raises InputError where the folder is missing or is none of these, where a class has no training
        image that can be read, and where there is no test image.
        """
        root = self._root(data_dir)
        with listed(root) as listing:
            return self._image_sets(root, listing)

    def listing(self, data_dir: Path | None = None) -> Listing:
        """List the pictures and what is left out, each with its reason; no picture is read."""
        with listed(self._root(data_dir)) as listing:
            return listing

    def whole(self, names: Sequence[str], data_dir: Path | None = None) -> list[bytes]:
        """Return pictures by name as small JPEG files in their own shape; nothing of one that is square."""
        paths = {picture.name: picture.path for picture in self.listing(data_dir).pictures}
        return whole([paths.get(name) for name in names])

    def _root(self, data_dir: Path | None) -> Path:
        path = data_dir or self.path
        if not os.fspath(path):
            raise InputError(
                "no folder of pictures was given",
                "Give it: firstlight train FOLDER, --data-dir FOLDER or --set path=FOLDER.",
            )
        root = Path(path).expanduser()
        if not root.exists():
            raise InputError(f"there is no folder or file {printable(root)}")
        return root

    def _image_sets(self, root: Path, listing: Listing) -> tuple[ImageSet, ImageSet]:
        pictures = listing.pictures
        stamps = [(picture.name, picture.label, picture.part, picture.stamp) for picture in pictures]
        settings = self.side, self.largest, self.fit, self.test_share, self.seed
        source = cache_folder() / f"folder-{key_of(os.fspath(root.resolve()))[:12]}"
        cache = FolderCache(source, key_of(2, reading_rule(), settings, stamps))
        images, facts = cache.load() or self._read(root, listing, cache)
        classes = classes_of(pictures)
        numbers = {label: number for number, label in enumerate(classes)}
        notes = (*_notes(self, root, listing, facts), *listing.notes, *facts.notes)
        mean, std = tuple(facts.mean), tuple(facts.std)

        def image_set(images: Images, indices: Sequence[int]) -> ImageSet:
            labels = torch.tensor([numbers[pictures[index].label] for index in indices])
            names = [pictures[index].name for index in indices]
            return ImageSet(images, labels, classes, mean, std, names, notes=notes)

        count = len(facts.train)
        train, test = images.narrow(0, 0, count), images.narrow(0, count, len(facts.test))
        return image_set(train, facts.train), image_set(test, facts.test)

    def _read(self, root: Path, listing: Listing, cache: FolderCache) -> tuple[Images, Facts]:
        """Read every picture, divide the set, and keep both in the cache."""
        pictures = listing.pictures
        side, median = (self.side, 0) if self.side else choose_side(pictures, self.largest)
        with ExitStack() as stack:
            if len(pictures) < MANY or not stack.enter_context(only_reader(cache.parts)):
                pixels = read_pixels(pictures, side, self.fit, cache.folder)
                return self._divided(root, listing, cache, pixels, side, median)
            if loaded := cache.load():  # what the process before has read
                return loaded
            is_compared = len(pictures) <= MOST_COMPARED and not any(each.part for each in pictures)
            pixels = read_in_parts(pictures, side, self.fit, cache.parts, thumbnails=is_compared)
            return self._divided(root, listing, cache, pixels, side, median)

    def _divided(
        self, root: Path, listing: Listing, cache: FolderCache, pixels: Pixels, side: int, median: int
    ) -> tuple[Images, Facts]:
        """Divide what was read into training and test, and keep it in the cache."""
        pictures = listing.pictures
        readable = [index for index, reason in enumerate(pixels.reasons) if not reason]
        _check_readable(root, pictures, pixels.reasons)
        notes: list[str] = []
        if any(picture.part for picture in pictures):
            test = [index for index in readable if pictures[index].part == "test"]
        else:
            test, notes = self._held_out([pictures[index] for index in readable], pixels, readable)
        train = sorted({*readable} - {*test})
        if not test:
            is_divided = any(picture.part for picture in pictures)
            why = "it cannot be read" if is_divided else "no class has two different pictures"
            raise InputError(f"{printable(root)} gives no test image: {why}", "Add pictures of each class.")
        order = torch.tensor(train), torch.tensor(test)
        mean, std = statistics(pixels.rows, order[0])
        unreadable = [(index, reason) for index, reason in enumerate(pixels.reasons) if reason]
        notes += _duplicates(pictures, pixels.digests, train, test)
        facts = Facts(train, test, unreadable, list(mean), list(std), side, median, notes)
        digest = cache.write(pixels.rows, *order) if pixels.is_final else None
        if digest is None:
            return pixels.rows.index_select(0, torch.cat(order)), facts
        return cache.keep(digest, facts)

    def _held_out(
        self, pictures: Sequence[Picture], pixels: Pixels, readable: Sequence[int]
    ) -> tuple[list[int], list[str]]:
        """Return the indices of the test images, and what to say of the split."""
        digests = [pixels.digests[index] for index in readable]
        names = [picture.name for picture in pictures]
        if not len(pixels.thumbnails):
            test = held_out(pictures, dict(zip(names, digests, strict=True)), self.test_share, self.seed)
            note = f"near copies are not looked for among more than {MOST_COMPARED:,} pictures"
            return [index for index, name in zip(readable, names, strict=True) if name in test], [note]
        alike = look_alikes(pictures, digests, pixels.thumbnails[readable])
        test = held_out(pictures, dict(zip(names, digests, strict=True)), self.test_share, self.seed, alike)
        sides: dict[str, set[bool]] = defaultdict(set)
        for name in names:
            sides[alike[name]].add(name in test)
        torn = {picture.label for picture in pictures if len(sides[alike[picture.name]]) > 1}
        note = f"near copies are in training and test: all pictures of {several(sorted(torn))} look alike"
        indices = [index for index, name in zip(readable, names, strict=True) if name in test]
        return indices, [note] if torn else []


def is_folder(path: Path) -> bool:
    """Whether a path is what a `Folder` may be: a folder, a table or an archive that exists."""
    return path.is_dir() or (path.is_file() and (path.suffix.lower() in SUFFIXES or is_archive(path)))


@contextmanager
def listed(path: Path) -> Iterator[Listing]:
    """Give the listing of a folder, a table, or an archive of either, whose files are there until the end."""
    if not is_archive(path) or path.is_dir():
        yield list_pictures(path)
        return
    with unpacked(path) as (folder, skipped):
        try:
            listing = list_pictures(folder)
        except InputError as error:  # the person knows the archive, not the folder
            raise InputError(error.message.replace(printable(folder), printable(path)), error.hint) from None
        yield replace(listing, skipped=(*skipped, *listing.skipped))


def list_pictures(path: Path) -> Listing:
    """List the pictures of a folder with class sub-folders, of a table, or of a folder that holds a table.

    Raises InputError where it is none of these.
    """
    if not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            return list_table(path)
        raise InputError(
            f"{printable(path)} is no folder, no table and no archive",
            "Give a folder with one sub-folder for each class, a CSV of file and label, or a zip or tar.",
        )
    try:
        return list_folder(path)
    except NoClasses:
        table = find_table(path)
        if table is None:
            raise
        return list_table(table)


def _check_readable(root: Path, pictures: Sequence[Picture], reasons: Sequence[str]) -> None:
    """Raise InputError where a class keeps no training image."""
    pairs = [pair for pair in zip(pictures, reasons, strict=True) if pair[0].part != "test"]
    good = {picture.label for picture, reason in pairs if not reason}
    for label in classes_of(pictures):
        if label not in good:
            picture, reason = next(pair for pair in pairs if pair[0].label == label)
            raise InputError(
                f"{printable(root)}: no training image of class {label} can be read "
                f"({picture.name}: {reason})",
                "Mend or replace the files, or remove the class.",
            )


def _duplicates(
    pictures: Sequence[Picture], digests: Sequence[str], train: Sequence[int], test: Sequence[int]
) -> list[str]:
    """Say which files are the same as another: in two classes, or in training and test."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in sorted([*train, *test]):
        groups[digests[index]].append(index)
    same = [group for group in groups.values() if len(group) > 1]
    of_test, notes = {*test}, []
    mixed = [group for group in same if len({pictures[index].label for index in group}) > 1]
    if mixed:
        names = [" = ".join(pictures[index].name for index in group[:3]) for group in mixed]
        notes.append(f"the same file in several classes: {several(names)}")
    leaks = [group for group in same if 0 < len(of_test & {*group}) < len(group)]
    if leaks:
        count = sum(len(of_test & {*group}) for group in leaks)
        names = [" = ".join(pictures[index].name for index in group[:3]) for group in leaks]
        notes.append(f"test images that are also training images: {count:,} ({several(names)})")
    return notes


def _notes(folder: Folder, root: Path, listing: Listing, facts: Facts) -> Iterator[str]:
    """Say what was chosen for these pictures and what was left out, a sentence each."""
    pictures, classes = listing.pictures, classes_of(listing.pictures)
    counts = Counter(pictures[index].label for index in (*facts.train, *facts.test))
    numbers = several([f"{label} {counts[label]:,}" for label in classes], 10)
    because = f"; the median of their shorter sides is {facts.median}" if facts.median else ""
    yield f"{printable(root)}: {len(classes)} classes ({numbers})"
    yield f"pictures are read as {facts.side}×{facts.side}, their centre{because}"
    if not any(picture.part for picture in pictures):
        total = len(facts.train) + len(facts.test)
        yield (
            f"no test folder: {len(facts.test):,} of {total:,} pictures are held out for the test, "
            f"{folder.test_share:.0%} of each class, by seed {folder.seed}"
        )
    tested = {pictures[index].label for index in facts.test}
    if missing := [label for label in classes if label not in tested]:
        yield f"no test image of {several(missing)}"
    if facts.unreadable:
        names = [f"{pictures[index].name}: {reason}" for index, reason in facts.unreadable]
        yield f"left out, unreadable: {len(names):,} ({several(names)})"
    reasons: dict[str, list[str]] = defaultdict(list)
    for skipped in listing.skipped:
        reasons[skipped.reason].append(skipped.name)
    for reason, names in reasons.items():
        yield f"left out, {reason}: {len(names):,} ({several(names, 3)})"
