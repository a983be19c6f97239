"""Firstlight trains a small image classifier fast, and shows why it is wrong.

    import firstlight

    run = firstlight.train("shapes.demo")
    run.confusion()

Names are loaded when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "train": "firstlight.jobs.train",
    "sweep": "firstlight.jobs.sweep",
    "find_lr": "firstlight.jobs.find_lr",
    "evaluate": "firstlight.run",
    "predict": "firstlight.run",
    "report": "firstlight.run",
    "compare": "firstlight.run",
    "suspects": "firstlight.jobs.suspects",
    "recipes": "firstlight.recipes",
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
    module = importlib.import_module(_ROOMS[name])
    return module if _ROOMS[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
