"""A finished run, opened from its folder: its numbers, its network, its pictures."""
from __future__ import annotations

from firstlight.record import RunFolder


class Run:
    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
