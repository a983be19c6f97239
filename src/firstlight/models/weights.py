"""Published weights: read from a file without running anything in it, and copied into a network by name."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.errors import InputError, printable

_NESTED = ("state_dict", "model", "model_state_dict")
"""Under these keys training scripts write the weights, beside other things."""
_NOT_LEARNED = "num_batches_tracked"
"""A counter of batch norm, which older files lack and evaluation does not read."""
_SHOWN = 5
"""Names in a message; the others are counted."""


@dataclass(frozen=True)
class TakenWeights:
    """Which tensors of a network came from a file.

    taken: their names. total: tensors of the network, without the counters of batch norm.
    missing: names in the network that the file lacks. misshapen: names of another shape in the file.
    unused: names in the file that the network lacks.
    """

    taken: tuple[str, ...]
    total: int
    missing: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} of {self.total} tensors taken"]
        left = [("not in the file", self.missing), ("of another shape", self.misshapen)]
        left += [("in the file alone", self.unused)]
        lists = [f"{_listed(names)} ({reason})" for reason, names in left if names]
        return ", these not: ".join([*parts, "; ".join(lists)] if lists else parts)


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a file that `torch.save` wrote, by name, on the CPU.

    sha256: the sum that the file must have, in hexadecimal. Nothing of the file is read before it fits.

    Weights under "state_dict" or "model" are unpacked, and the prefix "module." of DataParallel is removed.
    Raises InputError where the file is missing, is altered, or holds anything but tensors.
    """
    path = Path(path)
    name = printable(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        hint = "Install or download it again. Nothing in it was used."
        raise InputError(f"{name} is altered: its SHA-256 sum is not {sha256}", hint)
    try:
        return _tensors(_decoded(data, path.suffix))
    except Exception as error:  # an unpickler that meets nonsense may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{name} holds no weights that can be read safely: {printable(reason)}",
            "Give a safetensors file, or one that torch.save(model.state_dict(), …) wrote.",
        ) from error


def _decoded(data: bytes, suffix: str) -> Any:
    if suffix == ".safetensors":
        from safetensors.torch import load

        return load(data)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}")
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise ValueError(f"no tensors are {_listed(others)}" if others else "it is empty")
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in content.items()}


def load_weights(
    model: nn.Module, path: str | Path, *, head: str = "", sha256: str | None = None
) -> TakenWeights:
    """Copy the weights in a file into a network, and return which were taken; see `take_weights`.

        print(load_weights(model, "resnet18.pth", head="fc"))  # 100 of 102 tensors taken, these not: …

    Raises InputError as `read_weights` and `take_weights` do.
    """
    return take_weights(model, read_weights(path, sha256), head=head, source=printable(path))


@torch.no_grad()
def take_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], *, head: str = "", source: str = "the file"
) -> TakenWeights:
    """Copy tensors into the parameters and buffers of the same name and shape; return which were taken.

    head: name of the last layer, which may stay as it is, as where the number of classes differs.

    Raises InputError, and changes nothing, unless every tensor outside the head is taken, and none that the
    file has outside the head is left over: a deeper network's file would otherwise fit a shallower one.
    """
    own = {name: value for name, value in model.state_dict().items() if not _is_counter(name)}
    file = {name: value for name, value in tensors.items() if not _is_counter(name)}
    misshapen = [name for name in own if name in file and file[name].shape != own[name].shape]
    if any(_is_in(name, head) for name in misshapen):
        # The weight and bias of a head belong together: never one without the other.
        misshapen += [name for name in own if name in file and _is_in(name, head) and name not in misshapen]
    result = TakenWeights(
        taken=tuple(name for name in own if name in file and name not in misshapen),
        total=len(own),
        missing=tuple(name for name in own if name not in file),
        misshapen=tuple(misshapen),
        unused=tuple(name for name in file if name not in own),
    )
    left = (*result.missing, *result.misshapen, *result.unused)
    if not all(_is_in(name, head) for name in left):
        raise InputError(
            f"the weights in {source} are of another network: {result}",
            f"All but {head} must fit by name and shape." if head else "All must fit by name and shape.",
        )
    for name in result.taken:
        own[name].copy_(file[name])
    return result


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _NOT_LEARNED


def _is_in(name: str, head: str) -> bool:
    return bool(head) and (name == head or name.startswith(f"{head}."))


def _listed(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
