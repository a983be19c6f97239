"""Networks that come with the package: each is read like a run folder, and nothing is written into it.

card.json               what it is, how it was trained, its accuracy, what it is not good for
recipe.json, environment.json, summary.json, model.safetensors: as in a run folder; the weights are fp16
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from firstlight.errors import InputError, nearest
from firstlight.record.run_folder import RunFolder

PREFIX = "pretrained:"
CARD = "card.json"
WEIGHTS = "model.safetensors"


def names() -> list[str]:
    """Return the names of the networks that come with the package."""
    return sorted(path.name for path in _room().iterdir() if (path / CARD).is_file())


def packaged(path: str | Path) -> PackagedFolder | None:
    """Return the network that "pretrained:NAME" names, None for any other path.

    Raises InputError for an unknown name.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return None
    name = text.removeprefix(PREFIX)
    if name not in names():
        known = [f"{PREFIX}{each}" for each in names()]
        raise InputError(f"there is no pretrained network {name!r}", nearest(text, known))
    return PackagedFolder(name)


class PackagedFolder(RunFolder):
    """A network of the package, by its name. Its weights are used only if their hash is that of the card."""

    is_packaged = True

    def __init__(self, name: str) -> None:
        super().__init__(Path(f"{PREFIX}{name}"))
        self.name = name

    @cached_property
    def card(self) -> dict[str, Any]:
        """What card.json says."""
        return self.read_json(CARD)

    def has(self, name: str) -> bool:
        return (_room() / self.name / name).is_file()

    def read_bytes(self, name: str, most: int) -> bytes:
        """Read a file; an installer may have put it there as a link. The weights must have their hash."""
        try:
            data = (_room() / self.name / name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {self.path / name}: {error.strerror or error}", _AGAIN) from None
        if name == WEIGHTS and hashlib.sha256(data).hexdigest() != self.card.get("sha256"):
            raise InputError(f"{self.path / name} is altered: its SHA-256 sum is not the card's", _AGAIN)
        return data

    def default_output(self, name: str) -> Path:
        return Path(f"{self.name}-{name}")

    @contextlib.contextmanager
    def lock(self, seconds: float = 0) -> Iterator[None]:
        self.require_writable()
        yield

    def write(self, name: str, content: bytes | str) -> None:
        self.require_writable()

    def remove(self, name: str) -> None:
        self.require_writable()

    def require_writable(self) -> NoReturn:
        raise InputError(
            f"{self.path} comes with the package: nothing is written into it",
            "`firstlight train cifar10.fast` makes a run folder of your own.",
        )


class WithResults(PackagedFolder):
    """A network of the package with results that are kept in memory, from which a page is made."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._results: dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        return name in self._results or super().has(name)

    def read_bytes(self, name: str, most: int) -> bytes:
        return self._results[name] if name in self._results else super().read_bytes(name, most)

    def write(self, name: str, content: bytes | str) -> None:
        self._results[name] = content if isinstance(content, bytes) else content.encode()


def with_results(path: str | Path) -> WithResults | None:
    """Return the network that "pretrained:NAME" names, with room for results; None for any other path."""
    folder = packaged(path)
    return None if folder is None else WithResults(folder.name)


_AGAIN = "Install firstlight again. Nothing in it was used."


def _room() -> Path:
    return Path(str(resources.files("firstlight.models"))) / "pretrained"
