"""Blocks of which networks are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.kernels import convolution, normalisation
from firstlight.models.fused import FusedConv


class GELU(nn.GELU):
    """GELU in its tanh form; in bf16 on a CPU by a compiled kernel, where no gradient passes."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad) and normalisation.activates(x):
            return normalisation.activate(x, self)
        return super().forward(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": GELU}


def check_choices(activation: str, logit_scale: float = 1.0) -> None:
    """Raise InputError where no activation has this name, or where the logits would lose their meaning."""
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}", f"Known: {', '.join(ACTIVATIONS)}.")
    if not logit_scale > 0:
        raise InputError(f"logit_scale must be above 0, not {logit_scale:g}")


def check_sizes(num_classes: int, channels: int) -> None:
    """Raise InputError where there is nothing to tell apart, or nothing to see."""
    if num_classes < 2 or channels < 1:
        raise InputError(f"no network of {num_classes} classes and {channels} channels")


class ConvBlock(nn.Sequential):
    """3×3 convolution (stride 1, padding 1) → optional 2×2 max-pool → batch norm → activation.

    activation: a name of `ACTIVATIONS`.
    identity: start with filters that hand the first channels on as they are, the others random
        (`nn.init.dirac_`), so that at first much of the image reaches every depth.
    norm_scale: whether batch norm learns its weight (scale); the bias is always learned.
    large_tiles: whether compiled convolutions in bf16 compute faster and with a larger error while the block
        trains; see `machine.kernels.convolution.convolve`.

    In bf16 on a CPU that has them, the compiled `machine.kernels` compute the same in fewer steps.
    """

    conv: nn.Conv2d
    pool: nn.MaxPool2d
    norm: nn.BatchNorm2d
    conv_norms = (("conv", "norm"),)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        pool: bool = False,
        activation: str = "relu",
        identity: bool = False,
        norm_scale: bool = True,
        large_tiles: bool = False,
    ) -> None:
        check_choices(activation)
        layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        if pool:
            layers["pool"] = nn.MaxPool2d(2)
        super().__init__(layers | {"norm": nn.BatchNorm2d(outputs), activation: ACTIVATIONS[activation]()})
        self.pooled, self.large_tiles = pool, large_tiles
        self.norm.weight.requires_grad_(norm_scale)
        if identity and not self.conv.weight.is_meta:  # a network that is only outlined holds no values
            nn.init.dirac_(self.conv.weight.data[:inputs])

    def forward(self, x: Tensor) -> Tensor:
        pool = self.pool if self.pooled else None
        large_tiles = self.large_tiles and self.training
        return conv_norm_activate(x, self.conv, self.norm, self[-1], pool, large_tiles=large_tiles)


def conv_norm_activate(
    x: Tensor,
    conv: nn.Conv2d | FusedConv,
    norm: nn.BatchNorm2d,
    activation: nn.Module | None = None,
    pool: nn.Module | None = None,
    branch: Tensor | None = None,
    *,
    large_tiles: bool = False,
) -> Tensor:
    """Return activation(norm(pool(conv(x))) + branch), by compiled kernels as far as they serve.

    pool: a 2×2 max-pool. branch: the other branch of a residual block. large_tiles: see `ConvBlock`.
    """
    if isinstance(conv, FusedConv):  # in a copy for inference
        if conv.serves(x):
            return conv(x, activation, pool, branch)  # type: ignore[no-any-return]
        conv = conv.conv
    layers = [layer for layer in (conv, pool, norm, activation) if layer is not None]
    # Whoever hooks a layer wants to see it at work.
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    dtype = _compiled_dtype(x, norm)
    if dtype is None or hooked or not normalisation.serves(norm, activation, x, dtype):
        x = conv(x)
        x = norm(x if pool is None else pool(x))
        x = x if branch is None else x + branch
        return x if activation is None else activation(x)
    if convolution.serves(conv, x, pool=pool is not None, dtype=dtype):
        stride, pooled = conv.stride[0], pool is not None
        x = convolution.convolve(x, conv.weight, stride, pool=pooled, dtype=dtype, large_tiles=large_tiles)
    else:
        x = conv(x)
        x = x if pool is None else pool(x)
    return normalisation.norm_activate(x, norm, activation, branch, dtype)


def _compiled_dtype(x: Tensor, norm: nn.BatchNorm2d) -> torch.dtype | None:
    """Return the number format in which compiled kernels may compute, None where they may not.

    In fp32 they serve training here, and a network's copy for inference by `FusedConv`. The network itself,
    asked in fp32, gives torch's rounding.
    """
    if torch.is_autocast_enabled("cpu"):
        return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
    return torch.float32 if x.dtype == torch.float32 and norm.training else None


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """N×C×H×W in, N×C×1×1 out: the largest value of each channel."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        # The adaptive pool of a GPU is slow at one output a channel.
        return x.flatten(2).max(2).values[..., None, None] if x.is_cuda else super().forward(x)


class Residual(nn.Module):
    """x + block(x), added once."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]
