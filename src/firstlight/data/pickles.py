"""Reading a pickle without trusting it: numbers, text, containers and plain arrays, and nothing else.

A pickle is a program. This reader looks at every instruction before the first one runs, and in place of the
few NumPy names that an array needs it hands out stand-ins, so that nothing the file names is ever imported.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any, NoReturn

import numpy as np

from firstlight.errors import InputError

_HINT = "Nothing in it was run. Take the file from its publisher again."
_NUMBERS = re.compile(r"[uif][1248]|b1")
_ORDERS = ("<", ">", "|", "=")


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Name:
    """What stands for `numpy.ndarray`: to be passed on, never to be called or changed."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it changes a class")


class _ElementType:
    """What a pickled `numpy.dtype` becomes: the code of a plain number, and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, then what only structured types have)
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("it holds an array of something other than numbers")
        self.order = _text(state[1])
        if self.order not in _ORDERS:
            raise pickle.UnpicklingError("it holds an array of unknown byte order")

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _MakeElementType(_Name):
    __slots__ = ()

    def __call__(self, code: object, *rest: object) -> _ElementType:
        if not _NUMBERS.fullmatch(_text(code)):
            raise pickle.UnpicklingError(f"it holds an array of type {_text(code)[:20]!r}")
        return _ElementType(_text(code))


class _Array(np.ndarray[Any, Any]):
    """An array that fills itself only from a state whose length fits its shape."""

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, tuple() as shape, _ElementType() as kind, bool() | 0 | 1 as fortran, bytes() as raw):
                element = kind.resolve()
            case _:
                raise pickle.UnpicklingError("it holds an array in an unknown form")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise pickle.UnpicklingError("it holds an array of impossible shape")
        if math.prod(shape) * element.itemsize != len(raw):
            raise pickle.UnpicklingError("it holds an array whose bytes do not fit its shape")
        super().__setstate__((1, shape, element, bool(fortran), raw))  # type: ignore[arg-type]


class _MakeArray(_Name):
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> _Array:
        if type(kind) is not _Name:
            raise pickle.UnpicklingError("it holds an array of unknown class")
        return _Array((0,), dtype=np.uint8)


_STAND_INS: dict[tuple[str, str], _Name] = {
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _MakeElementType(),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it wants to import {module}.{name}")
        return _STAND_INS[module, name]


def _inspect(data: bytes) -> None:
    """Raise UnpicklingError where an instruction asks for more memory than the file can need."""
    for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if "PUT" in instruction.name and isinstance(argument, int) and not 0 <= argument <= number:
            # The memo is a table as long as its highest number: one instruction could ask for 32 GB.
            raise pickle.UnpicklingError(f"it numbers its parts out of order ({argument})")
        if instruction.name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError("it refers to something outside the file")


def read_pickle(data: bytes, name: str) -> Any:
    """Return what the pickle holds: dicts, lists, tuples, bytes, text, numbers and NumPy arrays of numbers.

    Text written by Python 2 comes back as bytes. `name` is the file, for the message.

    Raises InputError where it is no pickle, is cut short, or wants to import or call anything.
    """
    try:
        _inspect(data)
        return _Reader(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # an unpickler that meets nonsense may raise anything
        raise InputError(f"{name} is not a pickle of plain data: {error}", _HINT) from error
