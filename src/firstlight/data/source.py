"""`Source`: what a set of images offers before and after it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from firstlight.data.images import DataFacts, ImageSet

__all__ = ["DataFacts", "Source"]


class Source(Protocol):
    """Where images come from: a frozen value, one class a file."""

    name: ClassVar[str]

    def facts(self) -> DataFacts | None:
        """Return what is known without loading, or None where only loading tells."""
        ...

    def load(self, data_dir: Path | None) -> tuple[ImageSet, ImageSet]:
        """Return (train, test); `data_dir` is where the user says that the data lies.

        Raises InputError where the data is missing or damaged.
        """
        ...
