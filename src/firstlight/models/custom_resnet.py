"""The course's custom ResNet: nine layers with weights, two residual blocks, 6.57 million parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.models.blocks import ConvBlock, Residual, check_choices, check_sizes
from firstlight.models.fused import fused


@dataclass(frozen=True)
class CustomResNetSpec:
    """The choice of a `CustomResNet`; called with a number of classes it builds one.

    width: channels after PrepLayer; later layers have 2, 4 and 8 times as many.
    bias: whether the linear layer has one.
    logit_scale: constant factor on the logits; a small one softens the softmax at the start of training.
    activation: relu, silu or gelu.
    identity: whether filters start as the identity, as far as they go.
    norm_scale: whether batch norm learns its weight (scale); the bias is always learned.
    """

    width: int = 64
    bias: bool = True
    logit_scale: float = 1.0
    activation: str = "relu"
    identity: bool = False
    norm_scale: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"width must be at least 1, not {self.width}")
        check_choices(self.activation, self.logit_scale)

    def __call__(self, num_classes: int, channels: int = 3) -> CustomResNet:
        return CustomResNet(num_classes, channels=channels, **vars(self))


class CustomResNet(nn.Module):
    """Classifies N×`channels`×32×32 images; `forward` returns N×`num_classes` logits.

    fields: those of `CustomResNetSpec`. From davidcpage/cifar10-fast, where the logit scale is 0.125.
    """

    def __init__(self, num_classes: int = 10, *, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        check_sizes(num_classes, channels)
        spec = CustomResNetSpec(**fields)
        width, self.logit_scale = spec.width, spec.logit_scale
        block = partial(
            ConvBlock, activation=spec.activation, identity=spec.identity, norm_scale=spec.norm_scale
        )
        self.prep = block(channels, width)
        self.layer1 = nn.Sequential(
            block(width, 2 * width, pool=True),
            Residual(nn.Sequential(block(2 * width, 2 * width), block(2 * width, 2 * width))),
        )
        self.layer2 = block(2 * width, 4 * width, pool=True)
        self.layer3 = nn.Sequential(
            block(4 * width, 8 * width, pool=True),
            Residual(nn.Sequential(block(8 * width, 8 * width), block(8 * width, 8 * width))),
        )
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(8 * width, num_classes, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        return self.linear(self.pool(x).flatten(1)) * self.logit_scale  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        """Return a copy for inference, with its batch norms folded; see `models.fused`."""
        return fused(self)

    def endpoints(self) -> dict[str, nn.Module]:
        """Name what Grad-CAM can look at; for 32×32 images the grids are 32, 16, 8 and 4 wide."""
        return {"prep": self.prep, "layer1": self.layer1, "layer2": self.layer2, "layer3": self.layer3}
