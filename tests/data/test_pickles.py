"""A pickle of plain data is read; one that names anything else is refused, and nothing of it is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from firstlight.data.pickles import read_pickle
from firstlight.errors import InputError


class Command:
    def __init__(self, function: object, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load])
def test_a_pickle_that_wants_to_call_something_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: object
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "touch made" if function is os.system else "open('made', 'w')"
    data = pickle.dumps({"data": Command(function, command)}, protocol)
    with pytest.raises(InputError, match=r"batch_7.*wants to import \w+\.\w+") as caught:
        read_pickle(data, "batch_7")
    assert "\n" not in caught.value.message and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["u1", "<i8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_data_and_arrays_come_back(kind: str, order: str) -> None:
    value = {"a": [1, 2.5, None, True, 2**70], "b": ("text", b"bytes"), b"c": {}}
    array = np.array(np.arange(6).reshape(2, 3), dtype=kind, order=order)  # type: ignore[call-overload]
    back = read_pickle(pickle.dumps({**value, "data": array}, 4), "arrays")
    np.testing.assert_array_equal(back.pop("data"), array, strict=kind != ">f4")
    assert back == value


# Arrays of Python 2 are read in test_cifar.
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02cnumpy\nndarray\n}U\x08tofile__K\x01sb.", id="changes a class"),
        pytest.param(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01aK\x01sb.", id="a function"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x0andarray.tofile\x93.", id="dotted name"),
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
