"""The pictures of a table: a CSV of file and label, and of train or test where it says so."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.data.folder_files import (
    PARTS,
    Listing,
    Picture,
    Skipped,
    listing,
    reason_against,
    stamp,
)
from firstlight.data.names import composed, several
from firstlight.errors import InputError, printable

SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
_DELIMITERS = ",;\t|"
_FILE = [
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name"),
    *("img", "picture", "name", "id"),
]
_LABEL = ["label", "labels", "class", "class_name", "classname", "category", "target"]
_PART = ["split", "set", "subset", "part", "partition"]
_HINT = "Name the columns file and label, and split where there is one."


@dataclass(frozen=True)
class _Row:
    """A row and the line on which it starts."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class _Columns:
    """Which column holds what. has_header: whether the first row names them."""

    file: int
    label: int
    part: int | None
    has_header: bool


def find_table(root: Path) -> Path | None:
    """Return the one table of a folder, None where there is none or several."""
    while root.is_dir():
        visible = [path for path in root.iterdir() if not path.name.startswith((".", "__"))]
        tables = [path for path in visible if path.suffix.lower() in (".csv", ".tsv") and path.is_file()]
        if len(tables) == 1:
            return tables[0]
        if tables or len(visible) != 1:
            return None
        root = visible[0]
    return None


def list_table(path: Path) -> Listing:
    """List the pictures that a table names, relative to its folder; every cell is text.

    Delimiters are comma, semicolon, tab or bar; quotes, a byte order mark and any line end are understood.
    A row without a file in the folder is left out, with its line.

    Raises InputError where the columns are not clear, where a file has two labels, and as `list_folder`.
    """
    rows = _rows(path)
    columns = _columns(path, rows)
    pictures: dict[Path, tuple[_Row, Picture]] = {}
    skipped: list[Skipped] = []
    for row in rows[columns.has_header :]:
        picture = _picture(path, row, columns, len(rows[0].cells))
        if isinstance(picture, Skipped):
            skipped.append(picture)
            continue
        before, other = pictures.setdefault(picture.path.resolve(), (row, picture))
        for what, one, two in (("label", other.label, picture.label), ("split", other.part, picture.part)):
            if one != two:
                raise InputError(
                    f"{printable(path)}: {picture.name} has two {what}s, {one} (line {before.line}) "
                    f"and {two} (line {row.line})",
                    "Keep one of the lines.",
                )
    if not pictures:
        few = several([f"{each.name}: {each.reason}" for each in skipped], 3)
        raise InputError(f"{printable(path)} names no picture in its folder ({few})", _HINT)
    return listing(path, [picture for _, picture in pictures.values()], skipped)


def _rows(path: Path) -> list[_Row]:
    """Return the rows that are not blank, split by the delimiter that gives the most rows of one width."""
    text = _text(path)
    best: list[_Row] = []
    most = 0
    for delimiter in _DELIMITERS:
        try:
            rows = list(_split(text, delimiter))
        except csv.Error as error:
            raise InputError(f"{printable(path)} cannot be read as a table: {error}", _HINT) from None
        width = len(rows[0].cells) if rows else 0
        regular = sum(len(row.cells) == width for row in rows)
        if width > 1 and regular > most:
            best, most = rows, regular
    if not best:
        raise InputError(f"{printable(path)} has no two columns", _HINT)
    return best


def _split(text: str, delimiter: str) -> Iterator[_Row]:
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield _Row(line, [cell.strip() for cell in cells])
        line = reader.line_num + 1


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {printable(path)}: {error.strerror}") from None
    is_wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{printable(path)} is not UTF-8 in line {line}", "Save the table as UTF-8."
        ) from None


def _columns(path: Path, rows: Sequence[_Row]) -> _Columns:
    """Find the columns by their names, or by what is in them where the first row is none of names."""
    width = len(rows[0].cells)
    words = [cell.casefold().replace(" ", "_").replace("-", "_") for cell in rows[0].cells]
    file, label, part = (
        next((words.index(word) for word in known if word in words), None) for known in (_FILE, _LABEL, _PART)
    )
    if (file is None) != (label is None) and width - (part is not None) == 2:
        # The other of two columns is what is missing, whatever it is called.
        known = {file, label, part}
        rest = next(index for index in range(width) if index not in known)
        file, label = (rest, label) if file is None else (file, rest)
    if file is not None and label is not None:
        return _Columns(file, label, part, has_header=True)
    some = [row.cells for row in rows[:200] if len(row.cells) == width]
    files = [sum(_find(path.parent, cells[index]) is not None for cells in some) for index in range(width)]
    if width > 3 or not max(files):
        raise InputError(f"{printable(path)}: the columns {several(rows[0].cells)} are not clear", _HINT)
    file = files.index(max(files))
    others = [index for index in range(width) if index != file]
    parts = [index for index in others if all(cells[index].casefold() in PARTS for cells in some)]
    part = parts[-1] if width == 3 and parts else None
    label = next(index for index in others if index != part)
    if width == 3 and part is None:
        raise InputError(f"{printable(path)}: the columns {several(rows[0].cells)} are not clear", _HINT)
    return _Columns(file, label, part, has_header=False)


def _find(root: Path, text: str) -> Path | None:
    """Return the file that a cell names, None where there is none; Windows writes its path with \\."""
    for name in (text, text.replace("\\", "/")):
        try:
            if name and (root / name).exists():
                return root / name
        except (OSError, ValueError):
            continue
    return None


def _picture(table: Path, row: _Row, columns: _Columns, width: int) -> Picture | Skipped:
    at = f"line {row.line}"
    if len(row.cells) != width:
        return Skipped(at, f"a row of {len(row.cells)} columns instead of {width}")
    file, text = row.cells[columns.file], row.cells[columns.label]
    part = "" if columns.part is None else row.cells[columns.part]
    if not file or not text:
        return Skipped(at, "a row without a label" if file else "a row without a file")
    path = _find(table.parent, file)
    if path is None:
        return Skipped(f"{at}, {printable(file)}", "a row whose file is not there")
    root, target = table.parent.resolve(), path.resolve()
    if not target.is_relative_to(root):
        return Skipped(f"{at}, {printable(file)}", "a row whose file is not in the folder of the table")
    if columns.part is not None and part.casefold() not in PARTS:
        raise InputError(
            f"{printable(table)}, line {row.line}: the split {printable(part)!r} is not known",
            "Known: train, valid, test.",
        )
    state = path.stat()
    if reason := reason_against(path, state):
        return Skipped(f"{at}, {printable(file)}", reason)
    # The path as it was written; where that goes round by another folder, the file's own.
    direct = ".." not in path.parts and path.is_relative_to(table.parent)
    name = printable((path.relative_to(table.parent) if direct else target.relative_to(root)).as_posix())
    return Picture(name, path, printable(composed(text)), PARTS.get(part.casefold(), ""), stamp(state))
