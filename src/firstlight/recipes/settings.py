"""`--set KEY=VALUE`: what the text of a shell means for a recipe, and a recipe put into such text."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from firstlight.errors import InputError, nearest
from firstlight.models.own import OwnNetwork
from firstlight.recipe import KINDS, WORDS, Recipe
from firstlight.training.schedule import CURVES


def with_text(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """Return the recipe with settings changed as a shell gave them, in text."""
    renamed = {
        "curve" if key == "schedule" and text in CURVES else key: text for key, text in settings.items()
    }
    # Whole parts first: another setting may be one of a new part.
    parts = {key: _part(key, text) for key, text in renamed.items() if key in KINDS}
    recipe = recipe.replace(**parts)
    rest = {key: text for key, text in renamed.items() if key not in parts}
    return recipe.replace(**{key: parse(key, text, recipe.setting(key).hint) for key, text in rest.items()})


def _part(key: str, text: str) -> Any:
    """Return a part by its name, with its defaults; a user's own network by package.module:Name."""
    if key == "model" and ":" in text:
        return OwnNetwork.imported(text)
    named = {kind.__name__.lower().removesuffix("spec"): kind for kind in KINDS[key]}
    word = text.lower().replace("_", "").removesuffix("spec")
    if word not in named:
        raise InputError(f"{key} cannot be {text!r}", nearest(word, list(named)))
    try:
        return named[word]()
    except TypeError as error:
        raise InputError(f"{key}: {text} needs more than its name ({error})", "Set it in Python.") from None


def parse(key: str, text: str, hint: Any) -> Any:
    """Return text as a value of a field's type."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() in ("none", "find"):
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(parse(key, item, typing.get_args(kind)[0]) for item in text.split(",") if text)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        return kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{key} takes {WORDS[kind]}, not {text!r}") from None


def words(recipe: Recipe, usual: Recipe) -> list[str]:
    """Return the words behind `firstlight train NAME` that turn the recipe `usual` into `recipe`.

    What no word can set is left out.
    """
    words = ["--seed", str(recipe.seed)]
    if recipe.epochs != usual.epochs:
        words = ["--epochs", str(recipe.epochs), *words]
    usual = usual.over(recipe.epochs)
    for key in KINDS:
        part = getattr(recipe, key)
        if type(part) is not type(getattr(usual, key)) and type(part) in KINDS[key]:
            text = type(part).__name__.lower()
            usual = with_text(usual, {key: text})
            words += ["--set", f"{key}={text}"]
    if isinstance(recipe.model, OwnNetwork):
        words += ["--set", "model=" + ":".join(recipe.model.name.rsplit(".", 1))]
    before = {each.key: each.value for each in usual.settings()}
    for each in recipe.settings():
        changed = each.key in before and before[each.key] != each.value
        if changed and each.key not in KINDS and each.key not in ("epochs", "seed"):
            words += ["--set", f"{each.key}={text_of(each.value)}"]
    return words


def text_of(value: Any) -> str:
    """Write a value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "find" if value is None else str(value)


def table(recipe: Recipe) -> list[str]:
    """Write every setting of a recipe as a line: key, value, and what it is."""
    rows = [("augment", " → ".join(map(repr, recipe.augment)) or "none", "")]
    for each in recipe.settings():
        value = type(each.value).__name__ if each.key in KINDS else text_of(each.value) or "none"
        rows.append((each.key, value, documented(each.owner)[each.name]))
    keys, values = (max(len(row[column]) for row in rows[1:]) for column in (0, 1))
    return [f"{key:{keys}}  {value:{values}}  {text}".rstrip() for key, value, text in rows]


def documented(part: type) -> dict[str, str]:
    """Return what a part's docstring says of each field: its lines `field: text`, with their continuation."""
    texts: dict[str, str] = {}
    current: list[str] = []
    for line in (inspect.getdoc(part) or "").splitlines():
        match = re.match(r"(\w+(?:, \w+)*): (.*)", line)
        if match:
            current = match[1].split(", ")
            texts |= dict.fromkeys(current, match[2])
        elif line.startswith("    "):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in current}
        else:
            current = []
    # The first sentence is enough for a line; a point within a number or a name ends none.
    names = [field.name for field in dataclasses.fields(part)]
    return {name: re.split(r"[.;](?:\s|$)", texts.get(name, ""))[0] for name in names}
