"""`SweepRecord`: what the folder of a sweep says of what was asked for, so that the sweep can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from firstlight.errors import InputError
from firstlight.recipe import Recipe
from firstlight.record.recipe_file import recipe_from_json
from firstlight.record.run_folder import RunFolder
from firstlight.record.sweep import SWEEP


class SweepRecord:
    """The folder of a sweep: what was asked for, and each run in a folder of its own."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.path = folder, folder.path

    @classmethod
    def open(cls, path: Path) -> Self:
        record = cls(RunFolder(path))
        if not record.is_begun:
            raise InputError(f"{path} holds no {SWEEP}", "Choose another --out.")
        return record

    @property
    def is_begun(self) -> bool:
        return self.folder.has(SWEEP)

    @property
    def is_finished(self) -> bool:
        return bool(self.environment.get("finished"))

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.folder.read_json(SWEEP)

    @cached_property
    def recipe(self) -> Recipe:
        values = self.environment.get("recipe")
        if not isinstance(values, dict):
            raise InputError(f"{self.path / SWEEP} names no recipe")
        return recipe_from_json(values)

    def is_of(self, settings: Sequence[Mapping[str, str]], seeds: range) -> bool:
        """Whether it was begun with these settings, and with these seeds or fewer."""
        before = self.environment.get("seeds")
        is_fewer = isinstance(before, list) and all(seed in seeds for seed in before)
        return is_fewer and self.environment.get("settings") == [dict(row) for row in settings]

    def check_same(self, settings: Sequence[Mapping[str, str]], seeds: range) -> None:
        """Raise InputError where it was begun with other settings, or with seeds that are not among these."""
        if self.is_of(settings, seeds):
            return
        before = self.environment.get("seeds")
        if isinstance(before, list) and self.is_of(settings, range(-(2**63), 2**63)):
            message = f"{self.path} was begun with {len(before)} seeds, not {len(seeds)}"
            raise InputError(message, "Give as many or more, or another --out.")
        raise InputError(f"{self.path} holds a sweep of other settings", "Choose another --out.")
