"""A user's own network, in the place of one of ours."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from firstlight.errors import InputError


@dataclass(frozen=True)
class OwnNetwork:
    """A network that is no part of Firstlight: its name is saved, its code is not.

    name: dotted name of the class or function that builds it.
    build: called with `num_classes` and `channels`, as far as it takes them; returns an `nn.Module`.
    """

    name: str
    build: Callable[..., Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, network: nn.Module | Callable[..., Any]) -> OwnNetwork:
        """Wrap a class, a function, or a network that is copied whenever a new one is asked for."""
        if isinstance(network, nn.Module):
            return cls(_dotted(type(network)), lambda: copy.deepcopy(network))
        return cls(_dotted(network), network)

    @classmethod
    def imported(cls, name: str) -> OwnNetwork:
        """Import `package.module:Name`, also from the current folder."""
        module, _, attribute = name.partition(":")
        sys.path.insert(0, os.getcwd())
        try:
            return cls.of(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"there is no network {name}: {error}", "Give it as package.module:Name."
            ) from None
        finally:
            sys.path.remove(os.getcwd())

    def __call__(self, num_classes: int, channels: int = 3) -> nn.Module:
        parameters = inspect.signature(self.build).parameters
        known = {"num_classes": num_classes, "channels": channels}
        named = {key: value for key, value in known.items() if key in parameters}
        positional = [
            key
            for key, each in parameters.items()
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        unnamed = [] if "num_classes" in named or positional[:1] in ([], ["channels"]) else [num_classes]
        model = self.build(*unnamed, **named)
        if not isinstance(model, nn.Module):
            raise InputError(f"{self.name} built no nn.Module, but a {type(model).__name__}")
        return model


def _dotted(build: Any) -> str:
    return f"{build.__module__}.{getattr(build, '__qualname__', type(build).__qualname__)}"
