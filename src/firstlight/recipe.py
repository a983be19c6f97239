"""`Recipe`: everything that can be chosen about a run, as one frozen value."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.data.cifar10 import Cifar10
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError, nearest
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon
from firstlight.training.schedule import CURVES

PARTS: dict[str, type] = {
    part.__name__: part
    for part in (
        *(Crop, FlipLR, Cutout, Cifar10, Shapes, CustomResNetSpec, FastNetSpec),
        *(SGD, Adam, AdamW, Muon),
    )
}
"""The built-in parts that a recipe may hold; a name in a file resolves to nothing else."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how.

    epochs, peak_epoch: counted from 1; the rate is highest on the last step of `peak_epoch`, which
        may be a fraction. peak_lr, min_lr: None means found by the learning-rate finder.
    sides: to which the images of the first epochs are resized, one for each of these epochs (progressive
        resizing); later epochs train on whole images.
    schedule: "linear" or "cosine". clip_norm, sharpness, average_decay: 0 is off; as in `Objective`.
    validation: training images held out, stratified; 0 trains on all. best_on_validation: keep the
        weights of the epoch that was best on them, instead of the last.
    tta_shift: pixels by which test-time augmentation also moves the images; 0 mirrors them only.
    """

    name: str
    data: Cifar10 | Shapes
    model: CustomResNetSpec | FastNetSpec
    augment: tuple[Crop | FlipLR | Cutout, ...]
    optimizer: SGD | Adam | AdamW | Muon = SGD()
    batch_size: int = 512
    epochs: int = 24
    sides: tuple[int, ...] = ()
    peak_epoch: float = 5.0
    peak_lr: float | None = None
    min_lr: float | None = None
    schedule: str = "linear"
    label_smoothing: float = 0.0
    l1: float = 0.0
    clip_norm: float = 0.0
    sharpness: float = 0.0
    average_decay: float = 0.0
    validation: int = 1000
    best_on_validation: bool = False
    tta_shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
        _require(
            0 < self.peak_epoch <= self.epochs,
            f"the peak, epoch {self.peak_epoch:g}, lies outside the {self.epochs} epochs of the run",
            f"Set peak_epoch above 0 and at most {self.epochs}.",
        )
        _require(min(self.sides, default=1) >= 1, f"sides must be positive, not {_text(self.sides)}")
        for key in ("peak_lr", "min_lr"):
            rate = getattr(self, key)
            _require(rate is None or 0 < rate < math.inf, f"{key} must be a positive number, not {rate}")
        if self.peak_lr is not None and self.min_lr is not None:
            _require(self.min_lr <= self.peak_lr, f"min_lr {self.min_lr:g} is above peak_lr {self.peak_lr:g}")
        _require(
            self.schedule in CURVES, f"unknown schedule {self.schedule!r}", f"Known: {', '.join(CURVES)}."
        )
        _require(
            0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), not {self.label_smoothing}"
        )
        _require(0 <= self.average_decay < 1, f"average_decay must be in [0, 1), not {self.average_decay}")
        for key in ("l1", "clip_norm", "sharpness", "validation", "tta_shift", "seed"):
            _require(
                0 <= getattr(self, key) < math.inf, f"{key} must not be negative, but is {getattr(self, key)}"
            )
        _require(
            self.validation > 0 or not self.best_on_validation,
            "best_on_validation needs validation images",
            "Set validation=1000, say. The test set chooses nothing.",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values; parts become {"type": name, field: value, …}."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` gave; an unknown part or field is an InputError."""
        settings = {key: _revive(key, value) for key, value in values.items()}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            _require(key in known, f"a recipe has no field {key!r}", nearest(key, known))
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.name not in settings
        ]
        _require(not missing, f"the recipe lacks {', '.join(missing)}")
        hints = typing.get_type_hints(cls)
        return cls(**{key: _coerce(key, value, hints[key]) for key, value in settings.items()})

    def over(self, epochs: int | str) -> Recipe:
        """Return the recipe over another number of epochs, its schedule shrunk or stretched in proportion."""
        number = _coerce("epochs", epochs, int)
        _require(number >= 1, f"epochs must be at least 1, not {number}")
        ratio = number / self.epochs
        count = round(len(self.sides) * ratio)
        sides = tuple(self.sides[min(int(epoch / ratio), len(self.sides) - 1)] for epoch in range(count))
        return dataclasses.replace(self, epochs=number, peak_epoch=self.peak_epoch * ratio, sides=sides)

    def replace(self, **settings: Any) -> Recipe:
        """Return the recipe with some settings changed.

        A key is a field of the recipe (`peak_lr`), a field of one of its parts (`weight_decay`), or
        both with a dot where the part must be said (`cutout.size`). Text, as a shell gives it, is
        turned into the field's type.
        """
        own = typing.get_type_hints(type(self))
        _require("name" not in settings, "a recipe's name cannot be set")
        changed = {key: _coerce(key, value, own[key]) for key, value in settings.items() if key in own}
        recipe = dataclasses.replace(self, **changed)
        for key, value in settings.items():
            if key not in own:
                recipe = recipe._with_part(key, value)
        return recipe

    def settings_from(self, usual: Recipe) -> list[str]:
        """Return the words behind `firstlight train NAME` that turn `usual` into this recipe.

        What no word can set is left out.
        """
        words = [] if self.epochs == usual.epochs else ["--epochs", str(self.epochs)]
        usual = usual.over(self.epochs)
        words += ["--seed", str(self.seed)]
        for field in dataclasses.fields(self):
            if field.name not in ("name", "epochs", "seed"):
                words += _words(field.name, getattr(self, field.name), getattr(usual, field.name))
        return words

    def _with_part(self, key: str, value: Any) -> Recipe:
        places = [place for place in self._places() if key in (place[-1], f"{place[0]}.{place[-1]}")]
        if not places:
            known = {field.name for field in dataclasses.fields(self)} | {
                place[-1] for place in self._places()
            }
            raise InputError(
                f"recipe {self.name} has no setting {key!r}", nearest(key, sorted(known - {"name"}))
            )
        if len(places) > 1:
            choices = ", ".join(f"{place[0]}.{place[-1]}" for place in places)
            raise InputError(f"setting {key!r} is in several places", f"Say which: {choices}.")
        label, part, name = places[0]
        changed = dataclasses.replace(
            part, **{name: _coerce(key, value, typing.get_type_hints(type(part))[name])}
        )
        if part in self.augment:
            return dataclasses.replace(self, augment=tuple(changed if p is part else p for p in self.augment))
        return dataclasses.replace(self, **{label: changed})

    def _places(self) -> list[tuple[str, Any, str]]:
        """List (label, part, field name) of every field of every part."""
        parts: list[tuple[str, Any]] = [(key, getattr(self, key)) for key in ("data", "model", "optimizer")]
        parts += [(type(part).__name__.lower(), part) for part in self.augment]
        return [(label, part, field.name) for label, part in parts for field in dataclasses.fields(part)]


def _words(key: str, value: Any, usual: Any) -> list[str]:
    """Return the `--set` words that turn `usual` into `value`; `replace` reads them."""
    if value == usual:
        return []
    if isinstance(value, tuple) and not any(map(dataclasses.is_dataclass, (*value, *usual))):
        return ["--set", f"{key}={_text(value)}"]
    if isinstance(value, tuple):
        if [type(part) for part in value] != [type(part) for part in usual]:
            return []
        pairs = zip(value, usual, strict=True)
        return [word for one, other in pairs for word in _words(type(one).__name__.lower(), one, other)]
    if not dataclasses.is_dataclass(value):
        return ["--set", f"{key}={'find' if value is None else value}"]
    if type(value) is not type(usual):
        return []
    label = "" if key in ("data", "model", "optimizer") else f"{key}."
    names = [field.name for field in dataclasses.fields(value)]
    return [w for n in names for w in _words(label + n, getattr(value, n), getattr(usual, n))]


def _require(holds: bool, message: str, hint: str = "") -> None:
    if not holds:
        raise InputError(message, hint)


def _text(values: tuple[Any, ...]) -> str:
    """Write numbers as `--set` takes them."""
    return ",".join(map(str, values))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _revive(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_revive(key, item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in PARTS:
        raise InputError(f"{key}: {name!r} is no built-in part", nearest(str(name), list(PARTS)))
    hints = typing.get_type_hints(PARTS[name])
    known = [field.name for field in dataclasses.fields(PARTS[name])]
    for field in fields:
        _require(field in known, f"{name} has no field {field!r}", nearest(field, known))
    return PARTS[name](
        **{field: _coerce(f"{key}.{field}", given, hints[field]) for field, given in fields.items()}
    )


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type that `hint` asks for, or raise an InputError that says what was expected."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    parts = [choice for choice in choices if choice in PARTS.values()]
    if parts:
        if isinstance(value, str):  # a part's name alone means the part with its defaults
            named = {part.__name__.lower(): part for part in parts}
            _require(
                value.lower() in named, f"{key} cannot be {value!r}", nearest(value.lower(), list(named))
            )
            try:
                return named[value.lower()]()
            except TypeError as error:
                raise InputError(f"{key}: {value} needs more than its name ({error})") from None
        _require(
            isinstance(value, tuple(parts)),
            f"{key} cannot be {value!r}",
            "Known: " + ", ".join(p.__name__ for p in parts),
        )
        return value
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str) and item is int:
            value = value.split(",") if value else ()
        _require(
            isinstance(value, (tuple, list)),
            f"{key} takes a list of {'numbers' if item is int else 'parts'}, not {value!r}",
            "Set it in Python.",
        )
        return tuple(_coerce(key, entry, item) for entry in value)
    if type(None) in choices and (value is None or value in ("find", "None", "none")):
        return None
    wanted = next(choice for choice in choices if choice is not type(None))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[wanted]
    complaint = InputError(f"{key} takes {words}, not {value!r}")
    if wanted is bool:
        table = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in table:
            raise complaint
        return table[str(value).lower()]
    if isinstance(value, bool) or (wanted is str and not isinstance(value, str)):
        raise complaint
    try:
        number = wanted(value)
    except (TypeError, ValueError):
        raise complaint from None
    if wanted is int and not isinstance(value, str) and number != value:
        raise complaint
    if wanted is float and math.isnan(number):
        raise complaint
    return number
