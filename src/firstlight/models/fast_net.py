"""A plain network that trains in minutes: whitening, three stages of two convolutions, a linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.models.blocks import ACTIVATIONS, ConvBlock, GlobalMaxPool, check_choices, check_sizes
from firstlight.models.fused import fused
from firstlight.models.whitening import Whitening


@dataclass(frozen=True)
class FastNetSpec:
    """The choice of a `FastNet`; called with a number of classes it builds one.

    widths: channels of the three stages.
    stem: channels of the whitening, at most 16 for each channel of the images.
    logit_scale: constant factor on the logits.
    activation: relu, silu or gelu.
    identity: whether filters start as the identity, as far as they go.
    norm_scale: whether batch norm learns its weight (scale); the bias is always learned.
    large_tiles: whether training in bf16 on a CPU computes faster and with a larger error; see `ConvBlock`.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    stem: int = 32
    logit_scale: float = 1 / 16
    activation: str = "gelu"
    identity: bool = True
    norm_scale: bool = False
    large_tiles: bool = False

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise InputError(f"widths must be three positive numbers, not {self.widths}")
        check_choices(self.activation, self.logit_scale)

    def __call__(self, num_classes: int, channels: int = 3) -> FastNet:
        return FastNet(num_classes, channels=channels, **vars(self))


class FastNet(nn.Module):
    """Classifies N×`channels`×32×32 images; `forward` returns N×`num_classes` logits.

    After airbench94 (Jordan 2024, arXiv 2404.00498, section 3), with sides of 32, 16, 8 and 4 instead of 31,
    15, 7 and 3, which an even tiling computes at the same cost, and whitening by 3×3 instead of 2×2 filters.

    fields: those of `FastNetSpec`.
    """

    def __init__(self, num_classes: int = 10, *, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        check_sizes(num_classes, channels)
        spec = FastNetSpec(**fields)
        self.logit_scale = spec.logit_scale
        block = partial(
            ConvBlock,
            activation=spec.activation,
            identity=spec.identity,
            norm_scale=spec.norm_scale,
            large_tiles=spec.large_tiles,
        )
        first, second, third = spec.widths
        # There are 18 directions a channel, both signs counted; the kernels want a multiple of 16.
        stem = min(spec.stem, 16 * channels)
        self.whiten = nn.Sequential(Whitening(channels, stem), ACTIVATIONS[spec.activation]())
        self.stage1 = nn.Sequential(block(stem, first, pool=True), block(first, first))
        self.stage2 = nn.Sequential(block(first, second, pool=True), block(second, second))
        self.stage3 = nn.Sequential(block(second, third, pool=True), block(third, third))
        self.pool = GlobalMaxPool()
        self.linear = nn.Linear(third, num_classes, bias=False)

    def prepare(self, images: Tensor) -> None:
        """Fit the whitening to normalised training images, N×C×H×W; a thousand are enough."""
        whitening = self.whiten[0]
        assert isinstance(whitening, Whitening)
        whitening.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.whiten(images))))
        return self.linear(self.pool(x).flatten(1)) * self.logit_scale  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        """Return a copy for inference, with its batch norms folded; see `models.fused`."""
        return fused(self)

    def endpoints(self) -> dict[str, nn.Module]:
        """Name what Grad-CAM can look at; for 32×32 images the grids are 32, 16, 8 and 4 wide."""
        return {"whiten": self.whiten, "stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}
