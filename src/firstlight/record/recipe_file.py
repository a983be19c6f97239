"""Reading the file of a recipe: of any version, and with parts that are not built in."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from firstlight.errors import InputError, nearest
from firstlight.models.own import OwnNetwork
from firstlight.recipe import KINDS, OLD_NAMES, Recipe, checked
from firstlight.training.objective import Objective
from firstlight.training.schedule import OneCycle


class Unknown:
    """A part that is not built in, as a file names it: it can be shown and compared, and does nothing."""

    mirrors: ClassVar[bool] = False
    reach: ClassVar[int] = sys.maxsize
    peak_lr: ClassVar[None] = None
    min_lr: ClassVar[None] = None

    def __init__(self, type: str, fields: Mapping[str, Any]) -> None:
        self.type, self.fields = type, dict(fields)
        self.name = str(fields.get("name", type)) if type == OwnNetwork.__name__ else type

    def __repr__(self) -> str:
        return self.name

    def to_json(self) -> dict[str, Any]:
        return {"type": self.type, **self.fields}

    def check(self, epochs: int) -> None:
        """Fit any run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self  # whatever is asked of it leads to the call below

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise InputError(
            f"{self.name} is no part of Firstlight, and a run folder holds no code",
            f"Open the run in Python: firstlight.open_run(path, parts=[{self.name.rpartition('.')[2]}]).",
        )


def recipe_from_json(values: Mapping[str, Any], parts: Sequence[Any] = ()) -> Recipe:
    """Return the recipe that `Recipe.to_json` wrote, now or in an earlier version.

    parts: classes that the file may name besides the built-in ones; any other part becomes an `Unknown`.
    Raises InputError where a field is missing or wrong.
    """
    values = _upgraded(values)
    hints = typing.get_type_hints(Recipe)
    for key in values:
        if key not in hints:
            raise InputError(f"a recipe has no field {key!r}", nearest(key, list(hints)))
    fields = dataclasses.fields(Recipe)
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise InputError(f"the recipe lacks {', '.join(missing)}")
    revived: dict[str, Any] = {}
    for key, value in values.items():
        if key == "augment":
            revived[key] = (
                tuple(_part(key, item, parts) for item in value) if isinstance(value, list) else None
            )
        else:
            is_part = key in KINDS and not (key == "head" and value is None)
            revived[key] = _part(key, value, parts) if is_part else checked(key, value, hints[key])
    if revived.get("augment", ()) is None:
        raise InputError(f"augment takes a list of parts, not {values['augment']!r}")
    return Recipe(**revived)


def _part(key: str, value: Any, parts: Sequence[Any]) -> Any:
    """Return a part from its plain values: a built-in one, one of `parts`, or an `Unknown`."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InputError(f"{key}: {value!r} names no part")
    name: str = value["type"]
    fields = {OLD_NAMES.get(each, str(each)): given for each, given in value.items() if each != "type"}
    if name == OwnNetwork.__name__:
        own = (OwnNetwork.of(part) for part in parts)
        return next((each for each in own if each.name == fields.get("name")), Unknown(name, fields))
    part = next((part for part in (*KINDS[key], *parts) if getattr(part, "__name__", "") == name), None)
    if part is None:
        return Unknown(name, fields)
    hints = typing.get_type_hints(part)
    known = [field.name for field in dataclasses.fields(part)]
    for field in fields:
        if field not in known:
            raise InputError(f"{name} has no field {field!r}", nearest(field, known))
    return part(**{field: checked(f"{key}.{field}", given, hints[field]) for field, given in fields.items()})


_IN_PARTS = {
    "schedule": {"peak_epoch": "peak_epoch", "peak_lr": "peak_lr", "min_lr": "min_lr", "schedule": "curve"},
    "objective": {name: name for name in ("label_smoothing", "l1", "clip_norm", "sharpness")},
}
"""Where the first version of a recipe's file, which was flat, kept fields of today's parts."""


def _upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe's file as today's version writes them."""
    if isinstance(values.get("schedule"), dict):
        return dict(values)
    types = {"schedule": OneCycle.__name__, "objective": Objective.__name__}
    moved = {
        part: {"type": types[part], **{new: values[old] for old, new in names.items() if old in values}}
        for part, names in _IN_PARTS.items()
    }
    flat = {name for names in _IN_PARTS.values() for name in names}
    # The only finder that there was.
    return {"finder": {"type": "RangeTest"}} | {k: v for k, v in values.items() if k not in flat} | moved
