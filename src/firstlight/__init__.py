"""Firstlight trains a small image classifier fast, and shows why it is wrong.

    import firstlight

    run = firstlight.train("shapes.demo")
    run.confusion()

Names are loaded when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "train": "firstlight.jobs.train",
    "sweep": "firstlight.jobs.sweep",
    "find_lr": "firstlight.jobs.find_lr",
    "evaluate": "firstlight.run",
    "predict": "firstlight.run",
    "predict_files": "firstlight.jobs.predict",
    "report": "firstlight.run",
    "export": "firstlight.run",
    "compare": "firstlight.run",
    "serve": "firstlight.run",
    "suspects": "firstlight.jobs.suspects",
    "recipes": "firstlight.recipes",
    "check": "firstlight.jobs.check",
    "open_run": "firstlight.run",
    "Recipe": "firstlight.recipe",
    "Run": "firstlight.run",
    "Seeds": "firstlight.jobs.seeds",
    "Sweep": "firstlight.record.sweep",
    "InputError": "firstlight.errors",
    "RunFailed": "firstlight.errors",
    "Diverged": "firstlight.errors",
}

__all__ = [*_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'firstlight' has no attribute {name!r}")
    importlib.import_module("firstlight.machine.waiting").let_threads_sleep()
    importlib.import_module("firstlight.machine.storage").lend_matplotlib_a_folder()
    module = importlib.import_module(_ROOMS[name])
    return module if _ROOMS[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Room(types.ModuleType):
    """A package that bears the name of a verb, and does what the verb does when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_ROOMS[verb]), verb)(*arguments, **options)


class _Door(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing firstlight.serve puts the package where the verb was.
        if name == "serve" and isinstance(value, types.ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
