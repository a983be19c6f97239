"""Reading a pickle of plain data without running it: nothing that the file names is imported or called."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from firstlight.errors import InputError

# All that a pickled array names. NumPy's own function is taken from an array: its module's name is private.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to import {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(data: bytes, name: str) -> Any:
    """Return what the pickle holds: dicts, lists, tuples, bytes, text, numbers and NumPy arrays.

    Its sum should have been checked: a forged file can ask for much memory, though it runs nothing. Text
    written by Python 2 comes back as bytes. `name` is the file, for the message.

    Raises InputError where it is no pickle, is cut short, or wants to import anything else.
    """
    try:
        return _Reader(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # an unpickler that meets nonsense may raise anything
        raise InputError(
            f"{name} is not a pickle of plain data: {error}",
            "Nothing in it was run. Take the file from its publisher again.",
        ) from error
