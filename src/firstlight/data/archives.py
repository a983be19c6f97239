"""Archives of pictures: unpacked whole or not at all, and never beyond their own folder."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from firstlight.data.cache import stamps
from firstlight.data.folder_files import Skipped
from firstlight.errors import InputError, printable
from firstlight.machine.storage import cache_folder

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
MOST_MEMBERS = 2_000_000
MOST_BYTES = 100 * 2**30
"""Unpacked, however large the archive is."""
MOST_RATIO, FREE_BYTES = 100, 2**30
"""Bytes unpacked for each byte of the archive, beyond the first GB: pictures are compressed already."""
_AT_ONCE = 2**20

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, OverflowError),  # encrypted, or an unknown method
    *(LookupError, TypeError, struct.error),  # a name that is empty, a header that is altered
)

Member = tuple[str, IO[bytes] | str]
"""Name, and what it holds, or the reason against it."""


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, list[Skipped]]]:
    """Give the folder to which a zip or tar was unpacked, and the members that were left out.

    The folder is in the user's cache, until the archive changes, or else a temporary one. Only regular files
    are taken.

    Raises InputError where the archive is damaged, too large, or holds a path that leads out of it.
    """
    folder = _in_cache(path)
    if folder is not None:
        yield folder / "files", _skipped(folder)
        return
    with tempfile.TemporaryDirectory(prefix="firstlight-", ignore_cleanup_errors=True) as temporary:
        try:
            _unpack(path, Path(temporary))
        except OSError as error:
            raise InputError(
                f"cannot unpack {printable(path)}: {error.strerror or error}",
                "Unpack it, and give the folder.",
            ) from None
        yield Path(temporary) / "files", _skipped(Path(temporary))


def _in_cache(path: Path) -> Path | None:
    """Return the folder in the cache that holds the unpacked archive, None where there can be none."""
    name, version = (hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() for text in _ids(path))
    versions = cache_folder() / f"unpacked-{name[:12]}"
    folder = versions / version[:16]
    if _is_whole(folder):
        return folder
    temporary = versions / f"{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir(parents=True)
        _unpack(path, temporary)
        for old in versions.iterdir():
            if old != temporary:
                shutil.rmtree(old, ignore_errors=True)
        temporary.replace(folder)
    except OSError:  # no room, no right, or another process was faster
        return folder if _is_whole(folder) else None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _ids(path: Path) -> tuple[str, str]:
    """Return what names an archive, and what changes with it."""
    return str(path.resolve()), f"{stamps([path])} {path.stat().st_ctime_ns}"


def _is_whole(folder: Path) -> bool:
    """Whether all files are still there and as they were: programs that clean a cache up take some."""
    try:
        values = json.loads((folder / "members.json").read_text(encoding="utf-8"))
        _skipped(folder)
        return bool(values["sha256"] == _sum(folder / "files"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sum(files: Path) -> str:
    """Return a hash over names, sizes and times of all files, of which every change sets one."""
    sha256 = hashlib.sha256()
    for path in sorted(files.rglob("*")):
        state = path.lstat()
        if not stat.S_ISDIR(state.st_mode):
            facts = (
                path.relative_to(files),
                state.st_mode,
                state.st_size,
                state.st_mtime_ns,
                state.st_ctime_ns,
            )
            sha256.update(ascii(facts).encode())
    return sha256.hexdigest()


def _skipped(folder: Path) -> list[Skipped]:
    values = json.loads((folder / "members.json").read_text(encoding="utf-8"))
    return [Skipped(name, reason) for name, reason in values["skipped"]]


def _unpack(path: Path, folder: Path) -> None:
    """Write the members to folder/files and what was left out to folder/members.json."""
    files = folder / "files"
    files.mkdir()
    left = min(MOST_BYTES, FREE_BYTES + MOST_RATIO * path.stat().st_size)
    skipped = []
    try:
        for number, (name, content) in enumerate(_members(path)):
            if number >= MOST_MEMBERS:
                raise InputError(
                    f"{printable(path)} holds more than {MOST_MEMBERS:,} members", "Unpack it yourself."
                )
            target = files.joinpath(*_parts(path, name))
            if isinstance(content, str) or target.exists():
                reason = content if isinstance(content, str) else "twice in the archive"
                skipped.append((printable(name), reason))
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                while part := content.read(_AT_ONCE):
                    left -= len(part)
                    if left < 0:
                        raise InputError(
                            f"{printable(path)} unpacks to more than its size allows, at {printable(name)}",
                            "If you trust it, unpack it and give the folder.",
                        )
                    file.write(part)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"{printable(path)} cannot be unpacked: {printable(error)}",
            "Is it whole? An encrypted one cannot be read.",
        ) from None
    values = {"sha256": _sum(files), "skipped": skipped}
    (folder / "members.json").write_text(json.dumps(values), encoding="utf-8")


def _parts(path: Path, name: str) -> tuple[str, ...]:
    """Return the parts of a member's relative path; raises InputError where it leads elsewhere."""
    plain = name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or plain.startswith("/") or PureWindowsPath(plain).drive or ".." in parts or "\0" in name:
        raise InputError(
            f"{printable(path)} holds a path that leads out of it: {printable(name)}",
            "Do not use it, or unpack it yourself.",
        )
    return parts


def _members(path: Path) -> Iterator[Member]:
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    yield info.filename, "a link in an archive"
                elif not info.is_dir():
                    with archive.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(path) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined] # or a long list fills the memory
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                is_link = member.issym() or member.islnk()
                yield member.name, "a link in an archive" if is_link else "no regular file"
        # tarfile takes a tar that is cut between two members for a whole one.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
