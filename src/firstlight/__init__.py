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
