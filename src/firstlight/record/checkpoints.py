"""Checkpoints: tensors and facts in one file each, which says by its own name whether it is whole."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from firstlight.record.run_folder import RunFolder

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
        self.folder, self.path = folder, folder.path / CHECKPOINTS
        self._seconds, self._bytes = 0.0, 0

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, and remove all but the last two."""
        self._bytes = self._write(f"step-{step:08d}", tensors, facts)
        for old in self._files("step")[:-KEPT]:
            old.unlink(missing_ok=True)

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
            old.unlink(missing_ok=True)

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
        self.folder.write(f"{CHECKPOINTS}/{stem}.{digest}.safetensors", data)
        self._seconds += time.perf_counter() - start
        return len(data)

    def _files(self, stem: str) -> list[Path]:
        """Return the files whose stem begins so, the oldest step first."""
        if not self.path.is_dir():
            return []
        files = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(path for path in files if path.name.startswith(stem))

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        try:
            data = path.read_bytes()
            named = _NAME.fullmatch(path.name)
            if named is None or hashlib.sha256(data).hexdigest()[:32] != named["digest"]:
                return None
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
            return tensors_from_bytes(data), facts
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
