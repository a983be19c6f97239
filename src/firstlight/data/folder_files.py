"""The pictures of a folder: which files are pictures, to which class each belongs, and what is left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.data.names import composed, natural_key, several
from firstlight.errors import InputError, nearest, printable

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders, and words of a table, that divide a set; what each means."""

_PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".heic"),
    *(".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_SYSTEM = frozenset(
    [
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "desktop.ini",
        "@eadir",
        "$recycle.bin",
        "system volume information",
    ]
)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


class NoClasses(InputError):
    """A folder without two class folders."""


@dataclass(frozen=True)
class Picture:
    """A file that should be a picture.

    name: its path in the folder, with `/`, as messages show it. label: its class.
    part: "train" or "test", "" where nothing divides the set.
    stamp: what changes when the file does.
    """

    name: str
    path: Path
    label: str
    part: str
    stamp: tuple[int, ...]


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out, and the reason."""

    name: str
    reason: str

    @property
    def is_broken_picture(self) -> bool:
        """Whether it bears the name of a picture, and reading it would say what is wrong."""
        is_broken = self.reason.startswith(("an empty file", "cannot be read", "a broken link"))
        return is_broken and Path(self.name).suffix.lower() in _PICTURES


@dataclass(frozen=True)
class Listing:
    """What a folder or a table holds, pictures sorted by name. notes: what a person should know of it."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()


@dataclass
class Tree:
    """All files below a folder that should be pictures, each by the parts of its relative path.

    Links are followed within the folder, and none leads in a circle. folders: every visible folder.
    """

    root: Path
    files: dict[tuple[str, ...], os.stat_result] = field(default_factory=dict)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    _linked: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, root: Path) -> Tree:
        tree = cls(root.resolve())
        try:
            os.scandir(tree.root).close()
        except OSError as error:
            raise InputError(f"cannot read the folder {printable(root)}: {error.strerror}") from None
        tree._walk((), (tree.root,))
        return tree

    def path(self, parts: Sequence[str]) -> Path:
        return self.root.joinpath(*parts)

    def skip(self, parts: Sequence[str], reason: str) -> None:
        self.skipped.append(Skipped(printable("/".join(parts)), reason))

    def _walk(self, parts: tuple[str, ...], above: tuple[Path, ...]) -> None:
        try:
            with os.scandir(self.path(parts)) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            return self.skip(parts, f"cannot be read: {error.strerror}")
        for name in names:
            self._take((*parts, name), above)

    def _take(self, parts: tuple[str, ...], above: tuple[Path, ...]) -> None:
        name, path = parts[-1], self.path(parts)
        if name.startswith(".") or name.casefold() in _SYSTEM:
            return self.skip(parts, "hidden, or made by the system")
        is_link = False
        try:
            state, target = path.lstat(), above[-1] / name
            is_link = stat.S_ISLNK(state.st_mode)
            if is_link:
                state, target = path.stat(), path.resolve()
        except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
            return self.skip(parts, "a broken link" if is_link else "cannot be read")
        if not target.is_relative_to(self.root):
            return self.skip(parts, "a link out of the folder")
        if not stat.S_ISDIR(state.st_mode):
            reason = reason_against(path, state)
            if reason:
                return self.skip(parts, reason)
            self.files[parts] = state
            return None
        if is_link:
            # So that links between folders can neither go in a circle nor multiply.
            if target in above or target in self._linked:
                return self.skip(parts, "a link to a folder that is read already")
            if above[-1] != self.path(parts[:-1]):
                return self.skip(parts, "a link in a folder that is itself a link")
            self._linked.add(target)
        self.folders.append(parts)
        return self._walk(parts, (*above, target))


def reason_against(path: Path, state: os.stat_result) -> str:
    """Return why a file is not taken for a picture, "" where it is; the picture itself is not read."""
    if not stat.S_ISREG(state.st_mode):
        return "no regular file"
    if not state.st_size:
        return "an empty file"
    if path.suffix.lower() in _PICTURES:
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    is_picture = start.startswith(_SIGNATURES[:-1]) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
    return "" if is_picture else "no picture file"


def stamp(state: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is written, replaced, or swapped with another."""
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def list_folder(root: Path) -> Listing:
    """List the pictures of a folder of class sub-folders, with or without train, valid and test above them.

    Folders inside a class belong to it. A single folder around all others is passed through.

    Raises InputError where there are not two classes, or where a class is in test only.
    """
    tree = Tree.of(root)
    depth = _depth(tree)
    tops = {parts[depth] for parts in tree.files if len(parts) > depth + 1}
    roles = {top: PARTS.get(top.casefold(), "") for top in tops}
    deep = {parts[depth] for parts in tree.files if len(parts) > depth + 2}
    if tops and not set(roles.values()) - {"valid", "test"} and deep == tops:
        raise InputError(
            f"{printable(root)} has {several(sorted(tops))} but no train folder",
            "Name the training folder train.",
        )
    trains = [top for top in deep if roles[top] == "train"]
    is_divided = bool(trains) and bool(set(roles.values()) & {"valid", "test"})
    at = depth + 1 if is_divided else depth
    pictures = []
    for parts, state in tree.files.items():
        role = roles.get(parts[depth], "") if is_divided else ""
        if is_divided and not role:
            tree.skip(parts, "lies beside train and test")
        elif len(parts) <= at + 1:
            tree.skip(parts, "lies in no class folder")
        else:
            label = printable(composed(parts[at]))
            name = printable("/".join(parts))
            pictures.append(Picture(name, tree.path(parts), label, role, stamp(state)))
    filled = {parts[:length] for parts in tree.files for length in range(1, len(parts))}
    for parts in tree.folders:
        if len(parts) == at + 1 and parts not in filled:
            tree.skip(parts, "a folder without pictures")
    return listing(root, pictures, tree.skipped)


def _depth(tree: Tree) -> int:
    """Return how many folders stand around all pictures, one in the other, before there are several."""
    depth = 0
    while tree.files and all(len(parts) > depth + 1 for parts in tree.files):
        below = {parts[depth + 1] for parts in tree.files if len(parts) > depth + 2}
        is_passed = len(below) > 1 or all(len(parts) > depth + 2 for parts in tree.files)
        if len({parts[depth] for parts in tree.files}) > 1 or not is_passed:
            break
        depth += 1
    return depth


def listing(root: Path, pictures: Sequence[Picture], skipped: Sequence[Skipped]) -> Listing:
    """Return the listing of these pictures, whose parts are "", "train", "valid" or "test".

    Raises InputError as `list_folder`.
    """
    notes = []
    parts = Counter(picture.part for picture in pictures)
    if parts["valid"]:
        role = "train" if parts["test"] else "test"
        use = "join the training images" if parts["test"] else "are the test images"
        notes.append(f"the {parts['valid']:,} validation images {use}")
        pictures = [
            Picture(p.name, p.path, p.label, role, p.stamp) if p.part == "valid" else p for p in pictures
        ]
    if parts["train"] and not parts["test"] + parts["valid"]:  # there is nothing that divides them
        pictures = [Picture(p.name, p.path, p.label, "", p.stamp) for p in pictures]
    pictures = sorted(pictures, key=lambda picture: composed(picture.name))
    _check_classes(root, pictures, skipped)
    return Listing(tuple(pictures), tuple(skipped), tuple(notes))


def classes_of(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """Return the classes of the training images in natural order."""
    return tuple(sorted({p.label for p in pictures if p.part != "test"}, key=natural_key))


def _check_classes(root: Path, pictures: Sequence[Picture], skipped: Sequence[Skipped]) -> None:
    classes = list(classes_of(pictures))
    folders = "Give a folder with one sub-folder for each class, or a CSV of file and label."
    if not classes:
        reasons = Counter(each.reason for each in skipped)
        detail = (
            f" ({several([f'{count:,} {reason}' for reason, count in reasons.most_common()])})"
            if reasons
            else ""
        )
        raise NoClasses(f"{printable(root)} holds no pictures in class folders{detail}", folders)
    unknown = sorted({p.label for p in pictures if p.part == "test"} - set(classes), key=natural_key)
    if unknown:
        few = unknown[0] if len(unknown) == 1 else several(unknown)
        what = "class" if len(unknown) == 1 else "classes"
        raise InputError(
            f"{printable(root)}: {what} {few} in test but not in train",
            f"Labels go by the names of the training classes. {nearest(unknown[0], classes)}",
        )
    if len(classes) < 2:
        raise NoClasses(
            f"{printable(root)} has only one class, {classes[0]}: there is nothing to tell apart", folders
        )


def picture_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return files as they are given, and for a folder all pictures below it, in natural order.

    A broken file with the name of a picture is one of them: who reads it learns why.
    Raises InputError where none is given, and where a folder holds no picture.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        tree = Tree.of(path)
        broken = [tuple(each.name.split("/")) for each in tree.skipped if each.is_broken_picture]
        below = sorted([*tree.files, *broken], key=lambda parts: [natural_key(part) for part in parts])
        if not below:
            raise InputError(f"{printable(path)} holds no picture", "Give image files, or a folder of them.")
        files += [path.joinpath(*parts) for parts in below]
    if not files:
        raise InputError("no image was given")
    return files
