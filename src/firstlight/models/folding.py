"""Batch norm folded into the convolutions before it: a faster copy of a network for inference, and back."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy, in evaluation mode, without the batch norms that directly follow a convolution.

    Convolution and batch norm of fixed statistics are one affine map. Only pairs that stand side by side in
    a `Sequential` are folded, in fp32; the copy is then converted to `dtype`, channels-last. ReLU6 works in
    place.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for part in [each for each in module.modules() if isinstance(each, nn.Sequential)]:
        for name, after in itertools.pairwise(list(part._modules)):
            layer, norm = part._modules[name], part._modules[after]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(part, name, fuse_conv_bn_eval(layer, norm))
                setattr(part, after, nn.Identity())
            elif isinstance(norm, nn.ReLU6):
                setattr(part, after, nn.ReLU6(inplace=True))
    # The stubs of `Module.to` know no memory format beside a type.
    return module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def take_folded(module: nn.Module, given: nn.Module) -> None:
    """Give a module the weights of its `folded` copy, trained since; its batch norms then only add."""
    for own, other in zip(_pairs(module), _pairs(given), strict=True):
        (convolution, norm), (trained, _) = own, other
        with torch.no_grad():
            convolution.weight.copy_(trained.weight)
            norm.bias.copy_(trained.bias)
            norm.weight.fill_(1)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)


def _pairs(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return the convolutions of a network, each with the batch norm that follows it, or stood there."""
    return [
        (part._modules[name], part._modules[after])
        for part in module.modules()
        if isinstance(part, nn.Sequential)
        for name, after in itertools.pairwise(list(part._modules))
        if isinstance(part._modules[name], nn.Conv2d)
        and isinstance(part._modules[after], nn.BatchNorm2d | nn.Identity)
    ]
