"""Files cut into pieces below 60 MB and joined again, for machines that larger files do not reach.

A folder of pieces holds `parts.json`: for each file its name, size, SHA-256 and pieces, each with its own
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from firstlight.errors import InputError
from firstlight.record.run_folder import write_atomic

LIMIT = 59_000_000
"""Bytes of a piece, at most."""
MANIFEST = "parts.json"
_NAME = re.compile(r"[\w-][\w.-]*")


def split(place: Path, folder: Path, limit: int = LIMIT) -> list[Path]:
    """Cut a file, or the files of the CIFAR-10 that a folder holds, into pieces in `folder`; return them."""
    pieces: list[Path] = []
    listed = []
    for path in _files(place):
        whole, its = hashlib.sha256(), []
        for number, data in enumerate(_blocks(path, limit)):
            whole.update(data)
            piece = folder / f"{path.name}.part-{number:03d}"
            write_atomic(piece, data)
            its.append({"name": piece.name, "sha256": hashlib.sha256(data).hexdigest()})
            pieces.append(piece)
        listed.append(
            {"name": path.name, "size": path.stat().st_size, "sha256": whole.hexdigest(), "pieces": its}
        )
    write_atomic(folder / MANIFEST, json.dumps({"files": listed}, indent=1) + "\n")
    return pieces


def _files(place: Path) -> list[Path]:
    from firstlight.data.cifar10_files import CIFAR10, find

    if place.is_file():
        return [place]
    found = find(place, CIFAR10) if place.is_dir() else None
    if found is None:
        raise InputError(f"{place} is no file and holds no CIFAR-10", "Give the folder that holds it.")
    return found.paths


def _blocks(path: Path, limit: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(limit):
            yield data


def is_cut(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def joined(folder: Path, into: Path) -> Path:
    """Join the pieces in `folder` into the files that they were, in `into`; return `into`.

    A file that is there and whole is left alone. Raises InputError, naming the file, where a piece is
    missing or altered.
    """
    for name, size, digest, pieces in _manifest(folder):
        target = into / name
        if target.is_file() and target.stat().st_size == size and _sha256(target) == digest:
            continue
        data = bytearray()
        for piece, expected in pieces:
            path = folder / piece
            if not path.is_file():
                raise InputError(f"{path} is missing", "Bring every piece that parts.json names.")
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != expected:
                raise InputError(f"{path} is altered or cut short", "Bring that piece again.")
            data += content
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise InputError(f"the pieces of {name} do not make the file that was cut", "Cut it again.")
        write_atomic(target, bytes(data))
    return into


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> list[tuple[str, int, str, list[tuple[str, str]]]]:
    """Return name, size, sum and pieces of each file; the names stay within their folder."""
    path = folder / MANIFEST
    try:
        listed = [
            (
                str(file["name"]),
                int(file["size"]),
                str(file["sha256"]),
                [(str(piece["name"]), str(piece["sha256"])) for piece in file["pieces"]],
            )
            for file in json.loads(path.read_text(encoding="utf-8"))["files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not list pieces: {error}", "Cut the data again.") from None
    for name in [each[0] for each in listed] + [piece for each in listed for piece, _ in each[3]]:
        if not _NAME.fullmatch(name):
            raise InputError(f"{path} names {name!r}, which is no plain name of a file")
    return listed
