"""What a run folder keeps of mistakes in the shape that their files have: whole.safetensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from firstlight.errors import InputError, printable
from firstlight.record.run_folder import RunFolder
from firstlight.record.values import check_tensor

WHOLE = "whole.safetensors"
_MOST_BYTES = 2**24
_JPEG = b"\xff\xd8\xff"


def write_whole(folder: RunFolder, pictures: Mapping[int, bytes]) -> None:
    """Keep JPEG files by the index of their image in the test set."""
    if not pictures:
        return
    joined = torch.frombuffer(bytearray(b"".join(pictures.values())), dtype=torch.uint8)
    sizes = torch.tensor([len(data) for data in pictures.values()])
    folder.write_tensors(
        WHOLE, {"indices": torch.tensor([*pictures]), "ends": sizes.cumsum(0), "bytes": joined}
    )


def read_whole(folder: RunFolder, count: int) -> dict[int, bytes]:
    """Return what `write_whole` wrote for a test set of `count`; InputError where it is something else."""
    if not folder.has(WHOLE):
        return {}
    tensors, where = folder.read_tensors(WHOLE), printable(folder.path / WHOLE)
    data = check_tensor(tensors.get("bytes"), f"{where}: bytes", (torch.uint8,), (None,))
    indices = check_tensor(
        tensors.get("indices"), f"{where}: indices", (torch.int64,), (None,), (0, count - 1)
    )
    ends = check_tensor(
        tensors.get("ends"), f"{where}: ends", (torch.int64,), (len(indices),), (0, len(data))
    )
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    if len(data) > _MOST_BYTES or bool((ends < begins).any()):
        raise InputError(f"{where} is damaged")
    everything = data.numpy().tobytes()
    pictures = {
        index: everything[begin:end]
        for index, begin, end in zip(indices.tolist(), begins.tolist(), ends.tolist(), strict=True)
    }
    if not all(picture.startswith(_JPEG) for picture in pictures.values()):
        raise InputError(f"{where} holds what is no JPEG file")
    return pictures
