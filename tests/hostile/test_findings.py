"""What fuzzing found, each kept as a case; and short rounds of it, so that the readers stay fuzzable."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest

from benchmarks.fuzz_readers import NAMES, readers
from firstlight.errors import InputError


def zip_with_an_empty_name() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/b.txt"), "x")
        archive.infolist()[0].filename = ""
    return file.getvalue()


CASES = {
    "a zip with a member of no name": ("archives", zip_with_an_empty_name()),
    "a zip of one byte": ("archives", b"P"),
    "a number of 400 digits in a summary": ("summary", b'{"test_accuracy": ' + b"9" * 400 + b"}"),
    "an infinite width": ("recipes", b'{"name": "x", "data": {"type": "Shapes"}, "model": {"width": 1e999}}'),
    "an infinite count in a learning curve": (
        "head",
        b'{"strength": 1, "accuracy": 1, "mirror": true, "mirror_accuracies": null, "curve": [[1e999, 0.5]]}',
    ),
    "a cell of a sweep that is a list": ("sweep", b'{"cells": [[1, 2]]}'),
    "a setting of a sweep that is a number": (
        "sweep",
        b'{"cells": [{"values": {"width": 4}, "seed": 0, "folder": "a"}]}',
    ),
    "cells of a sweep with other settings each": (
        "sweep",
        b'{"cells": [{"values": {"a": "4"}, "seed": 0, "folder": "a"},'
        b' {"values": {"b": "4"}, "seed": 0, "folder": "b"}]}',
    ),
    "a NUL in a table": ("tables of names", b"index,name\n\0,\0\n"),
    "a quote that never ends": ("tables of labels", b'file,label\n"' + b"x" * 200_000),
    "an index of other digits": ("tables of names", "index,name\n٣,x\n²,y\n".encode()),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_found_is_refused_or_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    reader, data = CASES[name]
    try:
        readers(tmp_path)[reader][0](data)
    except InputError as error:
        assert error.message.isprintable() and len(error.message) < 1000


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_takes_its_whole_inputs_and_refuses_or_reads_changed_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    reader, seeds = readers(tmp_path)[name]
    draw, read = random.Random(name), 0
    for data in [*seeds, *(bytes(draw.randbytes(40)) for _ in range(20))]:
        for _ in range(5):
            try:
                reader(data)
                read += 1
            except InputError as error:
                assert error.message.isprintable() and error.message
            place = draw.randrange(len(data) + 1)
            data = data[:place] + draw.randbytes(3) + data[place + draw.randrange(4) :]
    assert read or name == "tables of labels"  # whose picture is not there
