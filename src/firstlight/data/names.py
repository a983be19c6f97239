"""Names of files and classes: their order, and how a message shows them."""

from __future__ import annotations

import re
import unicodedata

_HARMFUL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are no UTF-8, line separators
_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they turn text around


def shown(name: object) -> str:
    """Return a name as a terminal and a file can show it: one line, with other characters escaped.

    Bytes of a file name that are no UTF-8 become `\\xNN`.
    """
    text = str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(c) if unicodedata.category(c) in _HARMFUL or c in _DIRECTIONS else c for c in text
    )


def _escaped(character: str) -> str:
    code = ord(character)
    # Python holds the byte 0xNN of a name that is no UTF-8 as U+DCNN.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


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
    return ", ".join(map(shown, names[:most])) + rest
