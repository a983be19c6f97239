"""A server in a thread of the test, and a network that looks for brightness."""

from __future__ import annotations

import http.client
import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.endurance import running as running
from firstlight.data.images import DataFacts
from firstlight.record.record import Record
from firstlight.serve.network import Network


class Brightness(nn.Module):
    """Two classes, `dark` and `bright`; the evidence for `bright` lies where the picture is white."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Conv2d(3, 1, 2, stride=2, bias=False)
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.grid.weight.fill_(1 / 12)
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def endpoints(self) -> dict[str, nn.Module]:
        return {"grid": self.grid}

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head((self.grid(images) - 0.5).relu().mean((2, 3))))


def brightness(fit: str) -> Network:
    facts = DataFacts(("dark", "bright"), (3, 32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    summary = SimpleNamespace(test_accuracy=None)
    record = SimpleNamespace(
        path=Path("brightness"), data=facts, model=Brightness(), kept_images=None, evaluation=None, names={},
        summary=summary,
    )  # fmt: skip
    return Network(cast(Record, record), fit)


def photo(orientation: int = 1, size: tuple[int, int] = (160, 96), box: int = 32) -> bytes:
    """Return a black JPEG file with a white square in the upper left corner, as a person sees it."""
    array = np.zeros((size[1], size[0], 3), np.uint8)
    array[:box, :box] = 255
    upright = Image.fromarray(array)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored.save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def ask(
    port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}, method: str = ""
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body of an answer; a body is posted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {} if body is None else {"Content-Type": "application/octet-stream"}
    try:
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, {**kind, **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def resident(pid: int | str = "self") -> int:
    """Return the bytes of memory that a process holds."""
    fields: Any = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096
