"""What a folder check finds: one kind of thing, the files it is about, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    groups: the files it is about, those that belong together in one group. is_wrong: or merely a note.
    """

    kind: str
    groups: tuple[tuple[str, ...], ...]
    meaning: str
    advice: str
    is_wrong: bool = True


def each(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return groups of one name each."""
    return tuple((name,) for name in names)
