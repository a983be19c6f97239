"""Prediction at scale: tens of thousands of files into a table, lines of JSON, or folders by class."""

from __future__ import annotations

import contextlib
import csv as tables
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from firstlight.data.folder_files import picture_files
from firstlight.errors import InputError, printable
from firstlight.insight.prediction import Prediction, Unreadable
from firstlight.machine.clock import duration
from firstlight.machine.storage import whole_folder
from firstlight.run import Run, open_run

Answer = Prediction | Unreadable
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]')


@dataclass
class Predicted:
    """What became of the files: how many are of each class, which could not be read, and how long it took."""

    counts: dict[str, int]
    unreadable: list[Unreadable] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """The number of files that were classified."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count:,}" for name, count in self.counts.items() if count)
        rate = f" ({self.count / self.seconds:,.0f} a second)" if self.seconds else ""
        files = "1 file" if self.count == 1 else f"{self.count:,} files"
        return f"{files} classified in {duration(self.seconds)}{rate}" + (f": {classes}" if classes else "")


def predict_files(
    run: str | Path | Run,
    paths: str | Path | Sequence[str | Path],
    *,
    csv: str | Path | None = None,
    sort: str | Path | None = None,
    each: Callable[[Answer], None] | None = None,
    quiet: bool = False,
) -> Predicted:
    """Classify files, and all pictures below folders, in bounded memory; an unreadable file ends nothing.

    csv: a table to write, with a row a file. sort: a folder, new or empty, in which each file is copied into
    a folder of its class. Both are there whole at the end, or not at all. each: called with every answer, in
    the order of the files. quiet: without a bar on stderr, which a log never shows.

    Raises InputError where no file is given, the table is there already, or the folder is not empty.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    opened, files = open_run(run), picture_files(given)
    classes = opened.data.classes
    start, result = time.perf_counter(), Predicted(dict.fromkeys(classes, 0))
    with contextlib.ExitStack() as stack:
        takers: list[Callable[[Answer], None]] = [] if each is None else [each]
        if sort is not None:
            takers.append(stack.enter_context(_sorted_into(Path(sort), classes, given)))
        if csv is not None:
            takers.append(stack.enter_context(_table(Path(csv), classes)))
        bar = stack.enter_context(
            tqdm(total=len(files), unit=" files", disable=True if quiet else None, leave=False)
        )
        answers = stack.enter_context(contextlib.closing(opened.predictions(files)))
        for answer in answers:
            for take in takers:
                take(answer)
            if isinstance(answer, Unreadable):
                result.unreadable.append(answer)
            else:
                result.counts[answer.label] += 1
            bar.update()
    result.seconds = time.perf_counter() - start
    return result


def as_json_line(answer: Answer) -> str:
    """Return an answer as one line of JSON: its file, and label and probabilities, or an error."""
    values: dict[str, object] = {"file": str(answer.path)}
    if isinstance(answer, Unreadable):
        values["error"] = answer.error.message
    else:
        values |= {"label": answer.label, "confidence": answer.confidence}
        values["probabilities"] = answer.probabilities
    return json.dumps(values)


@contextlib.contextmanager
def _table(path: Path, classes: Sequence[str]) -> Iterator[Callable[[Answer], None]]:
    if path.exists():
        raise InputError(f"{printable(path)} is there already", "Move it away, or choose another with --csv.")
    with _aside(path) as (aside, file):
        writer = tables.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "confidence", *(f"p_{name}" for name in classes), "error"])

        def take(answer: Answer) -> None:
            row: list[object] = [answer.path, "", "", *("" for _ in classes)]
            if isinstance(answer, Unreadable):
                writer.writerow([*row, answer.error.message])
            else:
                # Nine digits give a number of fp32 back exactly.
                numbers = [f"{answer.probabilities[name]:.9g}" for name in classes]
                writer.writerow([answer.path, answer.label, f"{answer.confidence:.9g}", *numbers, ""])

        yield take
        file.flush()
        os.replace(aside, path)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, IO[str]]]:
    """Open a file beside `path` for writing, and remove it unless it was renamed."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {printable(path)}: {error.strerror}") from None
    aside = Path(name)
    try:
        # A name that is no UTF-8 holds lone surrogates.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield aside, file
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _sorted_into(
    folder: Path, classes: Sequence[str], given: Sequence[Path]
) -> Iterator[Callable[[Answer], None]]:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{printable(folder)} is not empty", "Choose a new or an empty folder with --sort.")
    for path in given:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise InputError(
                f"{printable(folder)} lies in {printable(path)}, whose pictures are read",
                "Choose a folder outside it with --sort.",
            )
    names = dict(zip(classes, folder_names(classes), strict=True))
    with whole_folder(folder) as aside:
        for name in names.values():
            (aside / name).mkdir()

        def take(answer: Answer) -> None:
            if isinstance(answer, Prediction):
                _copy(answer.path, aside / names[answer.label])

        yield take


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a folder's name for each class, no two alike on any system, none of which leads elsewhere."""
    names: list[str] = []
    taken: set[str] = set()
    for label in classes:
        plain = _UNSAFE.sub("_", label).rstrip(". ")[:100] or "_"
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _copy(path: Path, folder: Path) -> None:
    """Copy a file into a folder; a number is added to its name where another has it."""
    number = 1
    while True:
        name = path.name if number == 1 else f"{path.stem}-{number}{path.suffix}"
        try:
            with (folder / name).open("xb") as copy, path.open("rb") as source:
                shutil.copyfileobj(source, copy)
        except FileExistsError:
            number += 1
            continue
        with contextlib.suppress(OSError):  # the time of a file is worth nothing against its content
            shutil.copystat(path, folder / name)
        return
