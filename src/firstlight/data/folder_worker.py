"""What each process does that reads pictures of a large set: parts, as its standard input tells it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from firstlight.data.cache import npy_header, whole
from firstlight.data.folder_files import Picture
from firstlight.data.folder_picture import THUMBNAIL, quiet, read_picture

_SAID_AT_ONCE = 32


@dataclass(frozen=True)
class Files:
    """Where the pixels go. rows, thumbnails: .npy files; thumbnails may be left out. side, fit: of a row."""

    rows: str
    thumbnails: str | None
    side: int
    fit: str


def say(stream: IO[str], values: Mapping[str, Any]) -> None:
    stream.write(json.dumps(values) + "\n")
    stream.flush()


def work() -> None:
    """Read parts that come as lines on the standard input, until it ends: what each process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    try:
        files = Files(**json.loads(sys.stdin.readline()))
        with quiet():
            for line in sys.stdin:
                try:
                    _read_part(json.loads(line), files)
                except OSError as error:
                    if isinstance(error, BrokenPipeError):
                        raise
                    reason = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
                    say(sys.stdout, reason)
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more; Python would complain of that at its end


def _read_part(task: Mapping[str, Any], files: Files) -> None:
    """Read the pictures of a part into their rows, then write what was found; say how far it is."""
    outputs = [(Path(files.rows), (3, files.side, files.side))]
    if files.thumbnails is not None:
        outputs.append((Path(files.thumbnails), THUMBNAIL))
    sums, digests, reasons = [hashlib.sha256() for _ in outputs], [], []
    is_final, unsaid = True, 0
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(path.open("r+b")) for path, _ in outputs]
        for file, (path, shape) in zip(opened, outputs, strict=True):
            file.seek(npy_header(path)[3] + task["first"] * math.prod(shape))
        for name, path in task["pictures"]:
            result = read_picture(Picture(name, Path(path), "", "", ()), outputs[0][1], files.fit)
            pixels = (result.row, result.thumbnail)[: len(outputs)]
            for file, sha, (_, shape), row in zip(opened, sums, outputs, pixels, strict=True):
                values = (np.zeros(shape, np.uint8) if row is None else row).tobytes()
                sha.update(values)
                file.write(values)
            digests.append(result.digest)
            reasons.append(result.reason)
            is_final, unsaid = is_final and result.is_final, unsaid + 1
            if unsaid == _SAID_AT_ONCE:
                say(sys.stdout, {"read": unsaid, "is_end": False})
                unsaid = 0
    part = {"digests": digests, "reasons": reasons, "is_final": is_final}
    with whole(Path(task["part"])) as temporary:
        temporary.write_text(json.dumps({**part, "sha256": [sha.hexdigest() for sha in sums]}), "ascii")
    say(sys.stdout, {"read": unsaid, "is_end": True})
