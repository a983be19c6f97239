"""Where this machine keeps downloads, decoded images and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder FIRSTLIGHT_CACHE, or else one in the platform's folder for caches."""
    if folder := os.environ.get("FIRSTLIGHT_CACHE"):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("firstlight"))
