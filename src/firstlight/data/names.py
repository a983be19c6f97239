"""Names of files and classes: their order, and how a message shows them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from firstlight.errors import printable


def composed(name: str) -> str:
    """Return a name in Unicode's composed form: macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Return the key of the natural order, in which class2 comes before class10."""
    words = []
    for text, number in re.findall(r"([^0-9]*)([0-9]*)", name):
        digits = number.lstrip("0")
        words.append((text.casefold(), len(digits), digits))
    return (words, name)


def several(names: list[str], most: int = 5) -> str:
    """Return names as part of a sentence, at most `most` of them."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + rest


def printable_stem(path: Path) -> str:
    """Return the name of a folder or file without its suffix, safe as a part of a file name."""
    name = path.resolve().name
    stem = name if path.is_dir() else name.split(".")[0]
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "pictures"
