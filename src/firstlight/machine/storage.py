"""Where this machine keeps what took time to make."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return FIRSTLIGHT_CACHE, or the platform's folder for caches, where whatever takes time is kept."""
    if chosen := os.environ.get("FIRSTLIGHT_CACHE"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("firstlight"))
