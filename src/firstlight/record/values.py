"""Values from the files of a run folder, checked for type, length, range and size before they are used.

A run folder may come from anyone. JSON is read here into plain values of limited depth and size; `read`
makes a frozen dataclass of them by the types of its fields; `check_tensor` does the same for a tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from firstlight.errors import InputError, printable

MOST_DEPTH = 32
"""Lists and objects within each other, of which our own files have six at most."""
MOST_TEXT = 100_000
"""Characters of one text; a command that names many settings has a thousand."""
MOST_COUNT = 2**53
"""The largest whole number: larger ones are not the same as a float."""
MOST_SIDE, MOST_CHANNELS, MOST_CLASSES = 16_384, 64, 10_000
"""Of an image, and of a set of images."""
_SHOWN = 60

Bounds = Mapping[str, tuple[float, float]]
"""The smallest and the largest value of a field, by its name."""

_T = TypeVar("_T")
_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def parse(data: bytes, where: str, most_text: int = MOST_TEXT) -> Any:
    """Return the plain values of a JSON text; InputError where it is none, too deep, or absurd.

    where: names the file, for the message. most_text: characters of one text.
    """
    try:
        values = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be a file of a run") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {shown(error, 200)}") from None
    _check_plain(values, where, most_text)
    return values


def _check_plain(values: Any, where: str, most_text: int) -> None:
    """Raise InputError where plain values are too deep, or hold a text or a number beyond all use."""
    layer: list[Any] = [values]
    for _ in range(MOST_DEPTH + 1):
        inner: list[Any] = []
        for value in layer:
            if isinstance(value, dict):
                inner += value.values()
                _check_texts(value, where, most_text)
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _check_texts((value,), where, most_text)
            elif isinstance(value, int) and abs(value) > MOST_COUNT * 2**10:  # seeds may have 63 bits
                raise InputError(f"{where} holds the number {shown(value)}, which is too large")
        if not inner:
            return
        layer = inner
    raise InputError(f"{where} is nested too deeply to be a file of a run")


def _check_texts(texts: Iterable[str], where: str, most: int) -> None:
    if any(len(text) > most for text in texts):
        raise InputError(f"{where} holds a text of more than {most:,} characters")


def shown(value: object, most: int = _SHOWN) -> str:
    """Return a value for a message, on one line and not long."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"of {value.bit_length()} bits"  # Python writes no number of thousands of digits
    text = printable(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def read(kind: type[_T], values: Any, where: str, bounds: Bounds | None = None) -> _T:
    """Make a dataclass of plain values, each checked by the type of its field; others are passed over.

    kind: its fields are int, float, bool, str, a tuple of these, one of these or None, or texts by name.
    where: names what holds the values, for the message. bounds: of its numbers; a number without them only
    has to be finite, and an infinite bound lets every number in, NaN too.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} is {shown(values)}, where an object belongs")
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast("Any", kind)):
        name = f"{where}: {field.name}"
        if field.name in values:
            bound = (bounds or {}).get(field.name, (-1e300, 1e300))
            fields[field.name] = value_of(hints[field.name], values[field.name], name, bound)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} lacks {field.name}")
    return kind(**fields)


def value_of(hint: Any, value: Any, name: str, bounds: tuple[float, float]) -> Any:
    """Return a plain value as the type that a field asks for; InputError where it is of another."""
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if value is None and len(kinds) < len(typing.get_args(hint)):
            return None
        hint = kinds[0]
    if typing.get_origin(hint) is tuple:
        return _tuple_of(typing.get_args(hint), value, name, bounds)
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise InputError(f"{name} is {shown(repr(value))}, where texts by name belong")
        return value
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    fits = {
        bool: isinstance(value, bool),
        int: whole and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits[hint]:
        raise InputError(f"{name} is {shown(repr(value))}, where {_KINDS[hint]} belongs")
    if hint in (int, float):
        low, high = bounds
        # Written so that NaN is outside, except where a bound is infinite.
        if not (low <= value <= high) and not (math.isinf(high) and isinstance(value, float)):
            raise InputError(f"{name} is {shown(value)}, which is not between {low:g} and {high:g}")
        return hint(value) if hint is int or abs(value) < 1e300 or isinstance(value, float) else math.inf
    return value


def _tuple_of(kinds: Sequence[Any], value: Any, name: str, bounds: tuple[float, float]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(f"{name} is {shown(repr(value))}, where a list belongs")
    if kinds[-1] is not Ellipsis and len(value) != len(kinds):
        raise InputError(f"{name} has {len(value):,} values, not {len(kinds)}")
    each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(value_of(kind, item, name, bounds) for kind, item in zip(each, value, strict=True))


def check_tensor(
    tensor: Tensor | None,
    name: str,
    dtypes: Collection[torch.dtype],
    shape: Sequence[int | None],
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return a tensor of one of these types, this shape, and with values in these bounds; else InputError.

    shape: None where any length fits. bounds: None where every value does; NaN is in no bounds.
    """
    if tensor is None:
        raise InputError(f"{name} is missing")
    fits = tensor.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype not in dtypes or not fits:
        what = f"{str(tensor.dtype).removeprefix('torch.')} of {'×'.join(map(str, tensor.shape)) or 'one'}"
        wanted = "×".join("any" if size is None else str(size) for size in shape) or "one"
        raise InputError(f"{name} is {what}, where {_names(dtypes)} of {wanted} belongs")
    if bounds is not None and tensor.numel():
        low, high = bounds
        smallest, largest = (float(value) for value in tensor.aminmax())
        if not (low <= smallest and largest <= high):
            raise InputError(f"{name} has values outside {low:g} to {high:g}")
    return tensor


def _names(dtypes: Collection[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def attempted(work: Callable[[], _T], what: str) -> _T:
    """Return what `work` does with values that are each good but may not fit together; else InputError."""
    try:
        return work()
    except (RuntimeError, IndexError, TypeError, ArithmeticError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(f"{what}: {shown(error, 200)}") from error
