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
    "train": "firstlight.run",
    "find_lr": "firstlight.run",
    "evaluate": "firstlight.report.opened",
    "predict": "firstlight.report.opened",
    "report": "firstlight.report",
    "compare": "firstlight.report.compared",
    "cross_fit": "firstlight.crossfit",
    "recipes": "firstlight.recipes",
    "open_run": "firstlight.report.opened",
    "Recipe": "firstlight.recipe",
    "Run": "firstlight.report.opened",
    "Seeds": "firstlight.seeds",
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
