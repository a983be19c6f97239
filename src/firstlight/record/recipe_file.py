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
from firstlight.record.values import attempted, shown
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


_MOST_WHOLE = {"model": 8192, "augment": 16_384, "data": 10_000_000, "sides": 16_384, "epochs": 1_000_000}
"""The largest whole number in each field of a recipe's file: beyond it nothing could be built or held."""
_MOST_WORD = 4096
_MOST_PARTS = 64


def has_unknown_parts(recipe: Recipe) -> bool:
    """Whether a part of a recipe is known by its name alone."""
    parts = [getattr(recipe, key) for key in KINDS if key != "augment"]
    return any(isinstance(part, Unknown) for part in [*parts, *recipe.augment])


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
        _check_sizes(key, value)
        if key == "augment":
            revived[key] = (
                tuple(_part(key, item, parts) for item in value) if isinstance(value, list) else None
            )
        else:
            is_part = key in KINDS and not (key == "head" and value is None)
            revived[key] = _part(key, value, parts) if is_part else checked(key, value, hints[key])
    if revived.get("augment", ()) is None:
        raise InputError(f"augment takes a list of parts, not {shown(repr(values['augment']))}")
    return attempted(lambda: Recipe(**revived), "the recipe cannot be used")


def _check_sizes(key: str, value: Any) -> None:
    """Raise InputError where a field of a recipe's file holds a number, word or list beyond all use."""
    most: float = _MOST_WHOLE.get(key, 2**31 - 1)
    layer = [("", value)]
    while layer:
        name, each = layer.pop()
        if isinstance(each, dict):
            layer += [(str(inner), item) for inner, item in each.items()]
        elif isinstance(each, list):
            if len(each) > (_MOST_PARTS if key == "augment" else _MOST_WHOLE["epochs"]):
                raise InputError(f"{key} is a list of {len(each):,}, which is too long")
            layer += [(name, item) for item in each]
        elif isinstance(each, str):
            if len(each) > _MOST_WORD:
                raise InputError(f"{key} holds a word of {len(each):,} characters")
        elif isinstance(each, (int, float)) and not isinstance(each, bool):
            # A seed only has to be a number; NaN is within nothing.
            limit = 2**63 if "seed" in (key, name) else most
            if isinstance(each, float) and key not in _MOST_WHOLE:
                limit = 1e300  # a rate that is absurd diverges, and says so
            if not abs(each) <= limit:
                where = f"{key}.{shown(name)}" if name else key
                raise InputError(f"{where} is {shown(each)}, beyond {limit:,g}")


def _part(key: str, value: Any, parts: Sequence[Any]) -> Any:
    """Return a part from its plain values: a built-in one, one of `parts`, or an `Unknown`."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InputError(f"{key}: {shown(repr(value))} names no part")
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
    given = {field: checked(f"{key}.{field}", each, hints[field]) for field, each in fields.items()}
    return attempted(lambda: part(**given), f"{key}: {name} cannot be built")


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
