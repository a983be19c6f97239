"""`Recipe`: everything that can be chosen about a run, as one frozen value made of values that act."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from firstlight.data import AUGMENTATIONS, SOURCES
from firstlight.data.augment import Augmentation
from firstlight.data.source import Source
from firstlight.errors import InputError, nearest
from firstlight.insight.evaluation import Views
from firstlight.models import NETWORKS
from firstlight.models.network import NetworkSpec
from firstlight.models.own import OwnNetwork
from firstlight.training import FINDERS, HEADS, OPTIMIZERS, SCHEDULES
from firstlight.training.head import LogisticHead
from firstlight.training.lr_finder import Finder
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, OptimizerSpec
from firstlight.training.race import Race
from firstlight.training.schedule import OneCycle, Schedule

KINDS: dict[str, Sequence[type]] = {
    "data": SOURCES,
    "model": NETWORKS,
    "augment": AUGMENTATIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "objective": (Objective,),
    "finder": FINDERS,
    "head": HEADS,
}
"""The built-in parts for each field of a recipe that holds parts; a name in a file means nothing else."""

OLD_NAMES = {"bias_rate": "bias_lr_factor", "linear_rate": "linear_lr_factor"}
"""Settings by the names of earlier versions, and by today's."""


@dataclass(frozen=True)
class Setting:
    """One value that `--set KEY=VALUE` can change.

    part: the field of the recipe, or the augmentation, that holds it; "" for the recipe itself.
    owner: the class of which `name` is a field, and hint: the field's type.
    """

    key: str
    part: str
    name: str
    value: Any
    owner: type
    hint: Any


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how.

    name: of the recipe; a run folder is named after it.
    data: the images: a source.
    model: the network: a spec, an `nn.Module`, its class, or a function that returns one.
    augment: augmentations, in their order.
    optimizer: how a gradient becomes a step.
    schedule: the learning rate, step by step.
    objective: what a step minimises.
    finder: finds the rates that the schedule leaves open.
    head: fits the last layer to the features of a frozen network; none trains by steps of the optimizer.
    batch_size: images in a step.
    epochs: how often every image is shown.
    sides: image sides of the first epochs, one for each (progressive resizing); later ones are whole.
    average_decay: decay of the moving average of the weights, in a step; 0 keeps none.
    validation: number of training images held out, stratified; 0 trains on all.
    best_on_validation: keep the weights of the epoch that was best on validation, instead of the last.
    on_divergence: "stop", or "halve": start again at half the rates, up to five times.
    batch_norm: over several processes "synchronised", or "ghost": each norms its share of a batch alone.
    tta_shift: pixels by which test-time augmentation moves an image; 0 does not.
    tta_below: only images classified with a probability below this have test-time augmentation; 1: all.
    seed: seed of weights, order and augmentation.
    """

    name: str
    data: Source
    model: NetworkSpec
    augment: tuple[Augmentation, ...] = ()
    optimizer: OptimizerSpec = SGD()
    schedule: Schedule = OneCycle()
    objective: Objective = Objective()
    finder: Finder = Race()
    head: LogisticHead | None = None
    batch_size: int = 512
    epochs: int = 24
    sides: tuple[int, ...] = ()
    average_decay: float = 0.0
    validation: int = 1000
    best_on_validation: bool = False
    on_divergence: str = "stop"
    batch_norm: str = "synchronised"
    tta_shift: int = 0
    tta_below: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module) or inspect.isclass(self.model) or inspect.isroutine(self.model):
            object.__setattr__(self, "model", OwnNetwork.of(self.model))
        for key in ("epochs", "batch_size"):
            _require(getattr(self, key) >= 1, f"{key} must be at least 1, not {getattr(self, key)}")
        self.schedule.check(self.epochs)
        _require(min(self.sides, default=1) >= 1, f"sides must be positive, not {self.sides}")
        _require(0 <= self.average_decay < 1, f"average_decay must be in [0, 1), not {self.average_decay}")
        _require(0 < self.tta_below <= 1, f"tta_below must be in (0, 1], not {self.tta_below}")
        for key in ("validation", "tta_shift", "seed"):
            _require(getattr(self, key) >= 0, f"{key} must not be negative, but is {getattr(self, key)}")
        _require(
            self.validation > 0 or not self.best_on_validation,
            "best_on_validation needs validation images",
            "Set validation=1000, say. The test set chooses nothing.",
        )
        _require(
            self.on_divergence in ("stop", "halve"),
            f"on_divergence must be stop or halve, not {self.on_divergence!r}",
        )
        _require(
            self.batch_norm in ("synchronised", "ghost"),
            f"batch_norm must be synchronised or ghost, not {self.batch_norm!r}",
        )
        reach = max((part.reach for part in self.augment), default=0)
        _require(
            self.tta_shift <= reach,
            f"tta_shift {self.tta_shift} moves test images further than training does ({reach})",
            "Test-time augmentation shows no view that training would not.",
        )

    @property
    def views(self) -> Views:
        """The views that test-time augmentation averages over: none that training would not show."""
        return Views(any(part.mirrors for part in self.augment), self.tta_shift, self.tta_below)

    def over(self, epochs: int) -> Recipe:
        """Return the recipe over another number of epochs, its schedule shrunk or stretched in proportion."""
        _require(epochs >= 1, f"epochs must be at least 1, not {epochs}")
        ratio = epochs / self.epochs
        count = round(len(self.sides) * ratio)
        sides = tuple(self.sides[min(int(epoch / ratio), len(self.sides) - 1)] for epoch in range(count))
        schedule = self.schedule.stretched(ratio)
        return dataclasses.replace(self, epochs=epochs, schedule=schedule, sides=sides)

    def settings(self) -> list[Setting]:
        """List what `replace` can change, each by its shortest key; whole augmentations are left out."""
        rows: list[tuple[str, Any, str]] = [("", self, f.name) for f in dataclasses.fields(self)[1:]]
        rows = [row for row in rows if row[2] not in ("augment", "objective")]
        for label, part in self._parts():
            rows += [(label, part, field.name) for field in dataclasses.fields(part) if field.repr]
        names = [name for _, _, name in rows]
        return [
            Setting(
                name if names.count(name) == 1 or not label else f"{label}.{name}",
                label,
                name,
                getattr(part, name),
                type(part),
                typing.get_type_hints(type(part))[name],
            )
            for label, part, name in rows
        ]

    def _parts(self) -> Iterator[tuple[str, Any]]:
        for label in KINDS:
            held = getattr(self, label)
            several = (
                [(type(part).__name__.lower(), part) for part in held]
                if label == "augment"
                else [(label, held)]
            )
            # A part that is known by name alone has no fields.
            yield from ((name, part) for name, part in several if dataclasses.is_dataclass(part))

    def setting(self, key: str) -> Setting:
        """Return a setting by its field's name (`weight_decay`), or with its part (`cutout.size`)."""
        key = ".".join(OLD_NAMES.get(word, word) for word in key.split("."))
        settings = self.settings()
        _require(key != "name", "a recipe's name cannot be set")
        matches = [each for each in settings if key in (each.key, each.name, f"{each.part}.{each.name}")]
        own = [each for each in matches if each.key == key]
        if len(own or matches) == 1:
            return (own or matches)[0]
        if not matches:
            keys = sorted({each.key for each in settings})
            raise InputError(f"recipe {self.name} has no setting {key!r}", nearest(key, keys))
        choices = ", ".join(each.key for each in matches)
        raise InputError(f"setting {key!r} is in several places", f"Say which: {choices}.")

    def replace(self, **settings: Any) -> Recipe:
        """Return the recipe with settings changed; keys as for `setting`, values of the fields' types."""
        hints = typing.get_type_hints(Recipe)
        own = {key: checked(key, value, hints[key]) for key, value in settings.items() if key in hints}
        _require("name" not in own, "a recipe's name cannot be set")
        # Whole parts first: another setting may be one of a new part. All is checked together at the end.
        recipe = copy.copy(self)
        vars(recipe).update(own)
        changes: dict[str, dict[str, Any]] = {}
        for key in settings.keys() - own.keys():
            setting = recipe.setting(key)
            value = checked(key, settings[key], setting.hint)
            changes.setdefault(setting.part, {})[setting.name] = value
        parts = {
            label: dataclasses.replace(part, **changes[label])
            for label, part in recipe._parts()
            if label in changes
        }
        augment = tuple(parts.pop(type(part).__name__.lower(), part) for part in recipe.augment)
        return dataclasses.replace(recipe, **parts, augment=augment)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; parts become {"type": name, field: value, …}."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def checked(key: str, value: Any, hint: Any) -> Any:
    """Return a value as the type that a field asks for; raises InputError where it is of another."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if value is None and type(None) in kinds:
        return None
    if key in KINDS:
        plain = value is None or isinstance(value, (str, int, float, list, dict))
        _require(not plain, f"{key} cannot be {value!r}", f"Give a part: {_names(key)}.")
        return value
    if typing.get_origin(kind) is tuple:
        _require(isinstance(value, (tuple, list)), f"{key} takes a list of numbers, not {value!r}")
        return tuple(checked(key, item, typing.get_args(kind)[0]) for item in value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    fits = {
        bool: isinstance(value, bool),
        int: whole and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
        str: isinstance(value, str),
    }
    _require(fits[kind], f"{key} takes {WORDS[kind]}, not {value!r}")
    return kind(value)


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):  # a part that is known by name alone
        return value.to_json()
    if dataclasses.is_dataclass(value):
        kept = {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.repr
        }
        return {"type": type(value).__name__, **kept}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _names(key: str) -> str:
    return ", ".join(kind.__name__ for kind in KINDS[key])


def _require(holds: bool, message: str, hint: str = "") -> None:
    if not holds:
        raise InputError(message, hint)
