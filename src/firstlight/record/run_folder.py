"""The run folder: its version, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from firstlight.errors import InputError, printable
from firstlight.machine.limits import usable_memory
from firstlight.record.beneath import ASIDE, is_there, read_beneath, write_beneath
from firstlight.record.values import attempted, parse, shown

SCHEMA = 2
"""Version of the layout, raised when an older Firstlight could misread it; 1 had a flat recipe."""

RECIPE = "recipe.json"
ROOT = Path("runs")
"""Where run folders are made unless another place is named."""


MOST_JSON, MOST_LINES, MOST_TABLE = 2**24, 2**26, 2**28
"""Bytes of a JSON file, of one of JSON lines, and of a table, at most."""


def most_tensors() -> int:
    """Return how many bytes of tensors one file of a run may hold here: a quarter of the memory."""
    return usable_memory() // 4


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file aside, flush it and rename it, so that nobody ever sees half of it."""
    # A path that is no UTF-8 holds lone surrogates; replaced like this they are what JSON reads back.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_beneath(path.parent, path.name, data)


class RunFolder:
    """One run on disk. Opening it runs no code: it holds JSON, CSV, safetensors and pictures.

    is_packaged: whether it is part of the installed package, and so is never written.
    """

    is_packaged = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str, out: Path | None = None, root: Path | None = None) -> RunFolder:
        """Make a new folder: `out`, which must not exist yet, or root/name with a number when taken."""
        if out is not None:
            try:
                out.mkdir(parents=True)
            except FileExistsError:
                raise InputError(f"{out} exists already", "Choose another --out, or remove it.") from None
            except OSError as error:
                raise InputError(f"cannot make the run folder {out}: {error.strerror}") from None
            return cls(out)
        root = root or ROOT
        for number in range(1, 100_000):
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(
                    f"cannot make the run folder {path}: {error.strerror}", "Choose --out."
                ) from None
            return cls(path)
        raise InputError(f"{root} has no free name for {name}", "Choose --out.")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder of this version."""
        if not path.is_dir():
            raise InputError(
                f"there is no run folder {path}", "`firstlight train RECIPE` makes one in runs/."
            )
        if not is_there(path, RECIPE):
            raise InputError(f"{path} is no run folder: it holds no {RECIPE}")
        folder = cls(path)
        version = folder.read_json(RECIPE).get("schema")
        if isinstance(version, bool) or version not in range(1, SCHEMA + 1):
            raise InputError(
                f"{path} is a run folder of version {shown(repr(version))}; "
                f"this Firstlight reads up to {SCHEMA}",
                "Use the Firstlight that wrote it (environment.json says which).",
            )
        return folder

    @contextlib.contextmanager
    def lock(self, seconds: float = 0) -> Iterator[None]:
        """Hold the folder for this process; a second one is refused, also on a machine that shares the disk.

        seconds: how long to wait for it. A process that dies lets it go. The lock file lies beside the
        folder, which may be removed meanwhile.
        """
        lock_file = self.path.parent / f".{self.path.name}.lock"
        if lock_file.is_symlink():
            raise InputError(f"{printable(lock_file)} is a link; a lock is no link", "Remove it.")
        held = FileLock(lock_file, timeout=seconds)
        try:
            held.acquire()
        except Timeout:
            raise InputError(
                f"another process is writing into {self.path}", "Wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise InputError(f"cannot lock {self.path}: {error.strerror}", "Choose another --out.") from None
        try:
            yield
        finally:
            # Removed while it is held: whoever waits for this file looks again for the one at its path.
            Path(held.lock_file).unlink(missing_ok=True)
            held.release()

    def require_writable(self) -> None:
        """Raise InputError where nothing can be written because the run is part of the package."""

    def default_output(self, name: str) -> Path:
        """Return where a file that is made from the run is written, unless another place is named."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, or a link, which every reading then refuses."""
        return is_there(self.path, name)

    def read_text(self, name: str, most: int = MOST_TABLE) -> str:
        return self.read_bytes(name, most).decode("utf-8", errors="replace")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file that holds one JSON object, of limited size and depth."""
        where = printable(self.path / name)
        values = parse(self.read_bytes(name, MOST_JSON), where)
        if not isinstance(values, dict):
            raise InputError(f"{where} holds no JSON object")
        return values

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a file of tensors; its header is checked against its size before a tensor is made."""
        return tensors_of(self.read_bytes(name, most_tensors()), printable(self.path / name))

    def read_bytes(self, name: str, most: int) -> bytes:
        """Read a file of at most so many bytes, through no link; else InputError."""
        return read_beneath(self.path, name, most)

    def write(self, name: str, content: bytes | str) -> None:
        # A path that is no UTF-8 holds lone surrogates; replaced like this they are what JSON reads back.
        data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        write_beneath(self.path, name, data)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON object, with the layout's version where there is room for it."""
        self.write(name, json.dumps({"schema": SCHEMA, **values}, indent=2, ensure_ascii=False) + "\n")

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        # A tensor that shares memory or is laid out channels-last is not accepted as it is.
        plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        self.write(name, tensors_to_bytes(plain))

    def sweep(self) -> None:
        """Remove what a killed process was writing aside; only for who holds the lock."""
        for path in self.path.rglob(f".*{ASIDE}"):
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file or folder of the run, if it is there."""
        path = self.path / name
        if path.is_dir() and (name == "." or not path.is_symlink()):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def tensors_of(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file; InputError where it is damaged or crafted.

    The library compares the length of the header, and each tensor's offsets, type and shape, with the bytes
    that there are; what it makes is never larger than the file.
    """
    try:
        return attempted(lambda: tensors_from_bytes(data), f"{where} is damaged")
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is damaged: {shown(error, 200)}") from None


class NoFolder(RunFolder):
    """The run folder of a process that writes nothing: another one of the same run does."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull) / "run")

    @contextlib.contextmanager
    def lock(self, seconds: float = 0) -> Iterator[None]:
        yield

    def has(self, name: str) -> bool:
        return False

    def write(self, name: str, content: bytes | str) -> None:
        pass

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        pass

    def remove(self, name: str) -> None:
        pass
