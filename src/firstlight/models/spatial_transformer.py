"""A spatial transformer in front of the custom ResNet: it learns where to look before it classifies."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.models.blocks import ConvBlock
from firstlight.models.custom_resnet import CustomResNet, CustomResNetSpec

DAMPING = 0.1
"""Factor on what is learned of the affine map: without it, training diverged at rates that suit the ResNet.

The identity is added, so that weight decay draws the map to it, and not to zero."""


@dataclass(frozen=True)
class SpatialTransformerSpec(CustomResNetSpec):
    """The choice of a `SpatialTransformerNet`; called with a number of classes it builds one.

    width: channels after PrepLayer; later layers have 2, 4 and 8 times as many.
    bias: whether the linear layer has one.
    logit_scale: constant factor on the logits; a small one softens the softmax at the start of training.
    activation: relu, silu or gelu.
    identity: whether filters of the ResNet start as the identity, as far as they go.
    norm_scale: whether batch norm learns its weight (scale); the bias is always learned.
    localisation_width: channels of the localisation network's first convolution; the second has twice as
        many.
    """

    localisation_width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.localisation_width < 1:
            raise InputError(f"localisation_width must be at least 1, not {self.localisation_width}")

    def __call__(self, num_classes: int, channels: int = 3) -> SpatialTransformerNet:
        return SpatialTransformerNet(num_classes, channels=channels, **vars(self))


class SpatialTransformerNet(CustomResNet):
    """Classifies N×`channels`×32×32 images, each moved, turned and zoomed before the custom ResNet sees it.

    `forward` returns N×`num_classes` logits. Jaderberg et al. 2015 (arXiv 1506.02025). At first the images
    are left as they are.

    fields: those of `SpatialTransformerSpec`.
    """

    def __init__(
        self, num_classes: int = 10, *, channels: int = 3, localisation_width: int = 16, **fields: Any
    ) -> None:
        super().__init__(num_classes, channels=channels, **fields)
        self.transformer = SpatialTransformer(channels, localisation_width)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.transformer(images))

    def endpoints(self) -> dict[str, nn.Module]:
        """Name what Grad-CAM can look at, the images as the ResNet sees them first.

        A map of a later layer lies on those images, not on the ones that went in.
        """
        return {"transformer": self.transformer, **super().endpoints()}


class SpatialTransformer(nn.Module):
    """Reads six numbers from each image, and samples it on the grid that they describe.

    N×channels×H×W in and out; H and W at least 4. The numbers are an affine map from the place of an output
    pixel to that of the input, in units of half the image. Sampling is bilinear. Outside the image lies 0,
    the mean colour of normalised images. Jaderberg et al. 2015 (arXiv 1506.02025), section 3.

    width: channels of the localisation network's first convolution.

    On CUDA the gradient sums in no fixed order, so torch refuses it under `--determinism bits`.
    """

    start: Tensor

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        layers = OrderedDict[str, nn.Module]()
        layers["conv1"] = ConvBlock(channels, width, pool=True)
        layers["conv2"] = ConvBlock(width, 2 * width, pool=True)
        # A mean over the whole grid would forget where things are.
        layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(4), nn.Flatten()
        layers["linear"], layers["relu"] = nn.Linear(2 * width * 16, 32), nn.ReLU()
        self.localisation = nn.Sequential(layers)
        self.affine = nn.Linear(32, 6)
        # Zeros give the identity, whatever the image: the first step moves this layer alone.
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        self.register_buffer("start", torch.eye(2, 3), persistent=False)

    def theta(self, images: Tensor) -> Tensor:
        """Return the affine map of each image, N×2×3, fp32."""
        values = self.localisation(images)
        # bf16 has 8 bits: at the border of a 32×32 image, a place would be rounded to an eighth of a pixel.
        with _in_fp32(images):
            change: Tensor = self.affine(values.float()).view(-1, 2, 3)
            return self.start + DAMPING * change

    def forward(self, images: Tensor) -> Tensor:
        theta = self.theta(images)
        with _in_fp32(images):
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            sampled = F.grid_sample(images.float(), grid, align_corners=False)
        return sampled.to(images.dtype, memory_format=torch.channels_last)


def _in_fp32(images: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast; the device "meta", which has no values, knows none."""
    device = images.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
