"""The run folder: its version, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from firstlight.errors import InputError

SCHEMA = 2
"""Version of the layout, raised when an older Firstlight could misread it; 1 had a flat recipe."""

RECIPE = "recipe.json"
_ASIDE = ".aside"
ROOT = Path("runs")
"""Where run folders are made unless another place is named."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file aside, flush it and rename it, so that nobody ever sees half of it."""
    # A path that is no UTF-8 holds lone surrogates; replaced like this they are what JSON reads back.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_ASIDE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes it readable by its owner alone
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


class RunFolder:
    """One run on disk. Opening it runs no code: it holds JSON, CSV, safetensors and pictures."""

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
        if not (path / RECIPE).is_file():
            raise InputError(f"{path} is no run folder: it holds no {RECIPE}")
        folder = cls(path)
        version = folder.read_json(RECIPE).get("schema")
        if version not in range(1, SCHEMA + 1):
            raise InputError(
                f"{path} is a run folder of version {version!r}; this Firstlight reads up to {SCHEMA}",
                "Use the Firstlight that wrote it (environment.json says which).",
            )
        return folder

    @contextlib.contextmanager
    def lock(self, seconds: float = 0) -> Iterator[None]:
        """Hold the folder for this process; a second one is refused, also on a machine that shares the disk.

        seconds: how long to wait for it. A process that dies lets it go. The lock file lies beside the
        folder, which may be removed meanwhile.
        """
        held = FileLock(self.path.parent / f".{self.path.name}.lock", timeout=seconds)
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

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read_text(self, name: str) -> str:
        return self._read(name).decode("utf-8", errors="replace")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file that holds one JSON object."""
        data = self._read(name)
        try:
            values = json.loads(data)
        except ValueError as error:
            raise InputError(f"{self.path / name} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{self.path / name} holds no JSON object")
        return values

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return tensors_from_bytes(self._read(name))
        except SafetensorError as error:
            raise InputError(f"{self.path / name} is damaged: {error}") from None

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {self.path / name}: {error.strerror}") from None

    def write(self, name: str, content: bytes | str) -> None:
        write_atomic(self.path / name, content)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON object, with the layout's version where there is room for it."""
        self.write(name, json.dumps({"schema": SCHEMA, **values}, indent=2, ensure_ascii=False) + "\n")

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        # A tensor that shares memory or is laid out channels-last is not accepted as it is.
        plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        self.write(name, tensors_to_bytes(plain))

    def sweep(self) -> None:
        """Remove what a killed process was writing aside; only for who holds the lock."""
        for path in self.path.rglob(f".*{_ASIDE}"):
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file or folder of the run, if it is there."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
