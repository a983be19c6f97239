"""Files beneath a folder, read and replaced without ever following a link inside it.

A folder from a stranger can hold links that lead out of it, also in the place of a sub-folder, and can be
changed while it is read. So each part of a name is opened from the folder before it, and links are refused by
the system call itself. Where a system lacks such calls, each part is looked at before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from firstlight.errors import InputError, printable

ASIDE = ".aside"
"""The end of a file's name while it is being written."""
_BY_FOLDER = {os.open, os.mkdir, os.unlink, os.rename, os.stat} <= os.supports_dir_fd
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def read_beneath(root: Path, name: str, most: int) -> bytes:
    """Return the bytes of root/name; InputError where it is a link, no plain file, or larger than `most`."""
    path = root / name
    try:
        with _parent(root, name) as (folder, last):
            # Without O_NONBLOCK a named pipe would be waited for.
            flags = os.O_RDONLY | _NO_LINK | _BINARY | getattr(os, "O_NONBLOCK", 0)
            with os.fdopen(os.open(last, flags, dir_fd=folder), "rb") as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode):
                    raise InputError(f"{path} is no plain file")
                if state.st_size > most:
                    raise InputError(
                        f"{path} holds {state.st_size:,} bytes; at most {most:,} are read here",
                        "A file of a run is not so large. Take the folder from its owner again.",
                    )
                return file.read(most)
    except OSError as error:
        raise _explained(error, path, "read") from None


def write_beneath(root: Path, name: str, data: bytes) -> None:
    """Write root/name aside, flush it and rename it, so that nobody ever sees half of it.

    Missing folders are made. A link in the file's own place is replaced; InputError where a folder is one.
    """
    path = root / name
    try:
        with _parent(root, name, make=True) as (folder, last):
            where, own = os.path.split(last)
            aside = os.path.join(where, f".{own}.{secrets.token_hex(4)}{ASIDE}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
            try:
                with os.fdopen(os.open(aside, flags, 0o644, dir_fd=folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if folder is None:
                    os.replace(aside, last)
                else:
                    os.rename(aside, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside, dir_fd=folder)
                raise
    except OSError as error:
        if _is_link(error):
            raise _explained(error, path, "written") from None
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def is_there(root: Path, name: str) -> bool:
    """Whether there is a file, or a link, which reading refuses; a link on the way counts as a file."""
    path = root
    for part in Path(name).parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            return False
        if stat.S_ISLNK(mode):
            return True
    return not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _parent(root: Path, name: str, make: bool = False) -> Iterator[tuple[int | None, str]]:
    """Yield the open folder that holds root/name, and the name in it; without such calls, None and a path."""
    *folders, last = Path(name).parts
    if make:
        root.mkdir(parents=True, exist_ok=True)
    if not _BY_FOLDER:
        path = root
        for part in folders:
            path = path / part
            if path.is_symlink():
                raise OSError(errno.ELOOP, "a link", str(path))
            if make:
                path.mkdir(exist_ok=True)
        if not make and (path / last).is_symlink():
            raise OSError(errno.ELOOP, "a link", str(path / last))
        # `os.open` and `os.unlink` take no folder here, so the name is a whole path.
        yield None, str(path / last)
        return
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)  # the folder itself is the user's choice
    try:
        for part in folders:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=folder)
            except OSError as error:
                if stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, "a link", part) from error
                raise
            os.close(folder)
            folder = inner
        yield folder, last
    finally:
        os.close(folder)


def _is_link(error: OSError) -> bool:
    return error.errno in (errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP))


def _explained(error: OSError, path: Path, done: str) -> InputError:
    if _is_link(error):
        return InputError(
            f"{printable(path)} lies behind a link, and in a run folder nothing is {done} through one",
            "Put the file or folder itself in the place of the link.",
        )
    return InputError(f"cannot read {printable(path)}: {error.strerror or error}")
