"""Convolutions by oneDNN, which torch brings, with filters that are laid out once as it wants them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LAYOUT = torch.channels_last


class LaidOutFilters:
    """Filters that no longer change, for images in fp32 on a CPU, of which none learns.

    torch lays filters out anew at every call, and computes a single small image by a slow path without
    oneDNN. Where this torch offers no other way, and on other processors than x86-64, that is what is done.

    conv: its stride, padding, dilation and groups are taken. weight, bias: in the place of its own; fp32.
    images: such as will be convolved.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, images: Tensor) -> None:
        self._geometry: Any = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._bias = None if bias is None else bias.detach()
        weight = weight.detach()
        self._is_packed = _is_offered()
        if self._is_packed:
            arguments: Any = (weight.to_mkldnn(), *self._geometry, list(images.shape))
            self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(*arguments)
        else:
            self._weight = weight.contiguous(memory_format=_LAYOUT)

    def convolve(self, images: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Return activation(convolution of images), N×C×H×W in and out, channels-last."""
        images = images.contiguous(memory_format=_LAYOUT)
        if not self._is_packed:
            padding, stride, dilation, groups = self._geometry
            result = F.conv2d(images, self._weight, self._bias, stride, padding, dilation, groups)
            return result if activation is None else activation(result)
        name, formula = _name(activation)
        result = torch.ops.mkldnn._convolution_pointwise(
            images, self._weight, self._bias, *self._geometry, name or "none", [], formula
        )
        return result if activation is None or name else activation(result)  # type: ignore[no-any-return]


def _name(activation: nn.Module | None) -> tuple[str, str]:
    """Return what oneDNN calls an activation, and its formula; empty for one that it does not compute."""
    match activation:
        case nn.ReLU():
            return "relu", ""
        case nn.SiLU():
            return "swish", ""
        case nn.GELU(approximate="tanh"):
            return "gelu", "tanh"
        case _:
            return "", ""


def _is_offered() -> bool:
    """Whether this torch lays out filters and adds an activation, as its compiler asks it to do."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
