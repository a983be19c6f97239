"""Checkpoints: tensors and facts in one file each, which says by its own name whether it is whole."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from firstlight.errors import InputError
from firstlight.record.run_folder import MOST_LINES, RunFolder, most_tensors, tensors_of
from firstlight.record.values import parse

CHECKPOINTS = "checkpoints"
KEPT = 2
"""Checkpoints kept: the last, and the one before in case the last was damaged."""

_NAME = re.compile(r"(?P<stem>[a-z]+-\d+)\.(?P<digest>[0-9a-f]{32})\.safetensors")


class Checkpoints:
    """The checkpoints and snapshots of one run.

    A file is named STEM.DIGEST.safetensors after the SHA-256 of its bytes, so that a torn or altered
    one is known for what it is. It is written aside, flushed and renamed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.damaged: list[str] = []
        """Names of checkpoints that `last` passed over."""
        self._folder, self.path = folder, folder.path / CHECKPOINTS
        self._seconds, self._bytes = 0.0, 0

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, and remove all but the last two."""
        self._bytes = self._write(f"step-{step:08d}", tensors, facts)
        for old in self._files("step")[:-KEPT]:
            self._folder.remove(f"{CHECKPOINTS}/{old.name}")

    def cost(self) -> dict[str, float]:
        """Return the seconds spent on writing since the run was started or resumed, and the last size."""
        return {"checkpoint_seconds": self._seconds, "checkpoint_bytes": self._bytes}

    def last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts of the newest whole checkpoint; a damaged one is passed over."""
        for path in reversed(self._files("step")):
            checkpoint = self._read(path)
            if checkpoint is not None:
                return checkpoint
            self.damaged.append(path.name)
        return None

    def save_snapshot(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of an epoch's end, to be scored after training."""
        stem = f"epoch-{epoch:04d}"
        before = self._files(stem)
        self._write(stem, weights, {})
        for old in set(before) - set(self._files(stem)[-1:]):
            self._folder.remove(f"{CHECKPOINTS}/{old.name}")

    def snapshot(self, epoch: int) -> dict[str, Tensor] | None:
        """Return the weights of an epoch's end, None where they are missing or damaged."""
        for path in self._files(f"epoch-{epoch:04d}"):
            snapshot = self._read(path)
            if snapshot is not None:
                return snapshot[0]
        return None

    def _write(self, stem: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
        start = time.perf_counter()
        # A tensor that shares memory or is laid out channels-last is not accepted as it is.
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        data = tensors_to_bytes(plain, {"facts": json.dumps(facts)})
        digest = hashlib.sha256(data).hexdigest()[:32]
        self._folder.write(f"{CHECKPOINTS}/{stem}.{digest}.safetensors", data)
        self._seconds += time.perf_counter() - start
        return len(data)

    def _files(self, stem: str) -> list[Path]:
        """Return the files whose stem begins so, the oldest step first."""
        if self.path.is_symlink() or not self.path.is_dir():
            return []
        files = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(path for path in files if path.name.startswith(stem))

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        named = _NAME.fullmatch(path.name)
        try:
            data = self._folder.read_bytes(f"{CHECKPOINTS}/{path.name}", most_tensors())
            if named is None or hashlib.sha256(data).hexdigest()[:32] != named["digest"]:
                return None
            tensors = tensors_of(data, path.name)
            # The bytes that were checked, not the file, which may be another one by now.
            header = parse(data[8 : 8 + int.from_bytes(data[:8], "little")], path.name, MOST_LINES)
            facts = parse(header["__metadata__"]["facts"].encode(), path.name)
        except (InputError, KeyError, TypeError, AttributeError):
            return None
        return (tensors, facts) if isinstance(facts, dict) else None
