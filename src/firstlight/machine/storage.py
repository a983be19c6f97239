"""Where this machine keeps downloads, decoded images and kernels; folders made whole or not at all."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from firstlight.errors import InputError, printable


def cache_folder() -> Path:
    """Return the folder FIRSTLIGHT_CACHE, or else one in the platform's folder for caches.

    Where there is no home, or one in which nothing can be made, it is a folder of this user alone among the
    temporary files. Raises InputError where there is none of these either.
    """
    if folder := os.environ.get("FIRSTLIGHT_CACHE"):
        return Path(os.path.expanduser(folder))
    usual = _usual()
    return usual if usual is not None and _is_usable(usual) else _temporary()


def lend_matplotlib_a_folder() -> None:
    """Give matplotlib a folder for its list of fonts where the home has none; it would complain at length."""
    if "MPLCONFIGDIR" in os.environ:
        return
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if not _can_be_written(Path(base, "matplotlib")):
        try:
            folder = _temporary() / "matplotlib"
            folder.mkdir(exist_ok=True)
        except (InputError, OSError):
            return
        os.environ["MPLCONFIGDIR"] = str(folder)


def _usual() -> Path | None:
    """Return the platform's folder; None for a user without an account and without HOME."""
    import pooch

    try:
        folder = Path(pooch.os_cache("firstlight"))
    except (RuntimeError, KeyError, OSError):
        return None
    return folder if folder.is_absolute() else None


def _is_usable(folder: Path) -> bool:
    """Whether a folder can be read, or made."""
    try:
        return os.access(folder, os.R_OK | os.X_OK) if folder.is_dir() else _can_be_written(folder)
    except OSError:
        return False


def _can_be_written(folder: Path) -> bool:
    """Whether files could be made in a folder, which may have to be made first."""
    if not folder.is_absolute():
        return False
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError:  # a parent that may not even be looked into
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@functools.cache
def _temporary() -> Path:
    """Return a folder of this user alone: the same one in every process, unless someone else has its name."""
    try:
        if hasattr(os, "getuid"):
            folder = Path(tempfile.gettempdir(), f"firstlight-{os.getuid()}")
            folder.mkdir(mode=0o700, exist_ok=True)
            state = folder.lstat()
            own = state.st_uid == os.getuid() and not state.st_mode & 0o077
            if stat.S_ISDIR(state.st_mode) and own:
                return folder
    except OSError:
        pass  # a link, a file, or a disk that is full: one of this process alone may still be had
    try:
        folder = Path(tempfile.mkdtemp(prefix="firstlight-"))
    except OSError as error:
        raise InputError(
            f"there is no folder to keep files in: {error.strerror or error}",
            "Set FIRSTLIGHT_CACHE to a folder that can be written.",
        ) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; at the end it takes the place of `folder`, which is new or empty.

    After an error nothing is left of it. Raises InputError where it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot make {printable(folder)}: {error.strerror}") from None
    try:
        yield aside
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
