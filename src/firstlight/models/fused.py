"""Convolution, pooling, batch norm and activation as one step, for a network that no longer learns."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from firstlight.machine.kernels import convolution, normalisation
from firstlight.machine.kernels.convolution import FixedFilters
from firstlight.machine.kernels.library import is_built
from firstlight.machine.kernels.onednn import LaidOutFilters

_FEWEST_TILES = 4
"""Filters of the compiled kernels are four times as large: fewer tiles of 4×4 are not worth reading them."""

_MOST_CHANNELS = 256
"""Their rounding grows with the channels: 512 changed probabilities of a ResNet-18 by 8e-6, 256 by 1e-6."""


class FusedConv(nn.Module):
    """A convolution with the batch norm behind it, whose filters are prepared when they are first needed.

    N×C×H×W in and out. Where it `serves`, by the compiled kernels, if these are built, or by oneDNN with
    batch norm folded into the filters; elsewhere by the two layers themselves.

    norm: none leaves the convolution as it is. activation: one that always follows.
    has_kernels: whether the compiled kernels are built.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None,
        activation: nn.Module | None = None,
        *,
        has_kernels: bool,
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation
        self._affine = _affine(conv, norm)
        self._has_kernels = has_kernels and norm is not None
        self._transformed: FixedFilters | None = None
        self._laid_out: dict[bool, LaidOutFilters] = {}

    def serves(self, images: Tensor) -> bool:
        """Whether images like these are computed in one step: in fp32 on a CPU, where nothing learns."""
        return (
            images.dtype == self.conv.weight.dtype == torch.float32
            and images.device.type == self.conv.weight.device.type == "cpu"
            and not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        )

    def forward(
        self,
        x: Tensor,
        activation: nn.Module | None = None,
        pool: nn.Module | None = None,
        branch: Tensor | None = None,
    ) -> Tensor:
        """Return activation(norm(pool(conv(x))) + branch), as `blocks.conv_norm_activate` does."""
        activation = self.activation if activation is None else activation
        if not self.serves(x):
            x = self.conv(x)
            x = x if pool is None else pool(x)
            return _activated(x if self.norm is None else self.norm(x), activation, branch)
        if self._fits_kernels(x, activation, pool is not None):
            if self._transformed is None:
                self._transformed = FixedFilters(self.conv.weight)
            x = self._transformed.convolve(x, pool=pool is not None)
            return normalisation.affine_activate_(x, *self._affine, activation, branch)
        # After a negative scale the largest of four values would be another one.
        folds = pool is None or bool((self._affine[0] >= 0).all())
        if folds not in self._laid_out:
            self._laid_out[folds] = self._lay_out(x, folds)
        filters = self._laid_out[folds]
        if pool is None and branch is None:
            return filters.convolve(x, activation)
        x = filters.convolve(x)
        x = x if pool is None else pool(x)
        if not folds:
            scale, shift = (each.view(1, -1, 1, 1) for each in self._affine)
            x = torch.addcmul(shift, x, scale)
        return _activated(x, activation, branch)

    def _fits_kernels(self, x: Tensor, activation: nn.Module | None, pool: bool) -> bool:
        return (
            self._has_kernels
            and self.conv.in_channels <= _MOST_CHANNELS
            and len(x) * math.ceil(x.shape[2] / 4) * math.ceil(x.shape[3] / 4) >= _FEWEST_TILES
            and convolution.serves(self.conv, x, pool=pool, dtype=torch.float32)
            and self.norm is not None
            and normalisation.serves(self.norm, activation, x, torch.float32)
        )

    def _lay_out(self, x: Tensor, folds: bool) -> LaidOutFilters:
        if not folds:  # the shift holds the convolution's own bias
            return LaidOutFilters(self.conv, self.conv.weight, None, x)
        scale, shift = self._affine
        return LaidOutFilters(self.conv, self.conv.weight * scale.view(-1, 1, 1, 1), shift, x)


def _affine(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Return what batch norm makes of each channel of the convolution without its bias: scale and shift."""
    scale, shift = torch.ones(conv.out_channels), torch.zeros(conv.out_channels)
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
    shift = shift if conv.bias is None else shift + scale * conv.bias
    return scale.detach(), shift.detach()


def _activated(x: Tensor, activation: nn.Module | None, branch: Tensor | None) -> Tensor:
    x = x if branch is None else x + branch
    return x if activation is None else activation(x)


def fused(network: nn.Module) -> nn.Module:
    """Return a copy of a network, in evaluation mode, in which convolutions and their norms are one step.

    Joined are the pairs that a module names in `conv_norms`, which must reach them by
    `blocks.conv_norm_activate`, and those that stand side by side in a plain `Sequential`.
    """
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    has_kernels = is_built(torch.float32)
    for module in list(network.modules()):
        for conv, norm in getattr(module, "conv_norms", ()):
            layers = getattr(module, conv), getattr(module, norm)
            setattr(module, conv, FusedConv(*layers, has_kernels=has_kernels).eval())
        if type(module) is nn.Sequential:
            _fuse_sequence(module, has_kernels)
    return network


def _fuse_sequence(sequence: nn.Sequential, has_kernels: bool) -> None:
    layers = [*sequence, nn.Identity(), nn.Identity()]
    for index, (conv, second, third) in enumerate(zip(layers, layers[1:], layers[2:], strict=False)):
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        norm = second if isinstance(second, nn.BatchNorm2d) else None
        activation = second if norm is None else third
        if not isinstance(activation, (nn.ReLU, nn.SiLU, nn.GELU)):
            activation = None
        sequence[index] = FusedConv(conv, norm, activation, has_kernels=has_kernels).eval()
        for place in range(index + 1, index + 1 + (norm is not None) + (activation is not None)):
            sequence[place] = nn.Identity()
