from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from firstlight.data.pickles import read_pickle
from firstlight.errors import InputError


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_wants_to_call_something_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"data": Evil(tmp_path / "made")}, protocol)
    with pytest.raises(InputError, match=r"batch_7.*import.*mkdir"):
        read_pickle(data, "batch_7")
    assert not (tmp_path / "made").exists()


def test_plain_data_comes_back_as_it_was() -> None:
    value = {"a": [1, 2.5, None, True, 2**70], "b": ("text", b"bytes"), b"c": {}}
    assert read_pickle(pickle.dumps(value, 4), "plain") == value


@pytest.mark.parametrize("kind", ["u1", "<i8", ">f4", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_come_back(kind: str, order: str) -> None:
    array = np.array(np.arange(6).reshape(2, 3), dtype=kind, order=order)  # type: ignore[call-overload]
    back = read_pickle(pickle.dumps({"data": array}, 4), "arrays")["data"]
    assert (back.dtype.kind, back.dtype.itemsize) == (array.dtype.kind, array.dtype.itemsize)
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("a", "u1"), ("b", "f4")]),
        np.array(["text"]),
        np.array(["2001-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype="V8"),
    ],
)
def test_arrays_of_anything_else_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="array of"):
        read_pickle(pickle.dumps(array, 4), "arrays")


def _with_state(state: bytes) -> bytes:
    """A pickle that makes an array and sets a state of its own choice."""
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return b"\x80\x02" + make + state + b"b."


_U1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def test_the_python_2_form_is_read() -> None:
    array = read_pickle(_with_state(b"(K\x01K\x03\x85" + _U1 + b"\x89U\x03abct"), "batch")
    assert array.tolist() == [97, 98, 99]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            _with_state(b"(K\x01J\x00\x00\x00\x40\x85" + _U1 + b"\x89U\x03abct"), id="shape too large"
        ),
        pytest.param(
            _with_state(b"(K\x01J\xff\xff\xff\xff\x85" + _U1 + b"\x89U\x03abct"), id="negative shape"
        ),
        pytest.param(_with_state(b"(K\x01K\x03\x85U\x02u1\x89U\x03abct"), id="no element type"),
        pytest.param(_with_state(b"}U\x05shapeK\x01s"), id="state is a dict"),
        pytest.param(_with_state(b"N"), id="state is none"),
        pytest.param(b"\x80\x02cnumpy\nndarray\n}U\x08tofile__K\x01sb.", id="changes a class"),
        pytest.param(b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", id="calls a class"),
        pytest.param(
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01aK\x01sb.", id="changes a function"
        ),
        pytest.param(b"\x80\x02cnumpy\nload\nU\x01x\x85R.", id="another name of numpy"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x0andarray.tofile\x93.", id="dotted name"),
        pytest.param(b"\x80\x04B\xff\xff\xff\x7fabc.", id="memory by length"),
        pytest.param(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", id="memory by long length"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension"),
        pytest.param(b"Pname\n.", id="persistent name"),
        pytest.param(b"\x80\x02]", id="cut short"),
        pytest.param(b"<html><body>Not found</body></html>", id="a web page"),
        pytest.param(b"", id="empty"),
    ],
)
def test_nonsense_is_an_input_error_that_names_the_file(data: bytes) -> None:
    with pytest.raises(InputError, match="some/batch is not a pickle of plain data"):
        read_pickle(data, "some/batch")


def test_altered_bytes_never_raise_anything_else() -> None:
    whole = pickle.dumps({"data": np.arange(5, dtype="u1"), "labels": [1, 2]}, 2)
    whole = whole.replace(b"numpy._core", b"numpy.core")
    generator = np.random.default_rng(0)
    for _ in range(3000):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        try:
            read_pickle(bytes(data), "altered")
        except InputError:
            continue


def test_one_instruction_cannot_ask_for_a_table_of_gigabytes() -> None:
    with pytest.raises(InputError, match="numbers its parts out of order"):
        read_pickle(b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".", "batch")
