"""ResNet-18 and ResNet-34 with the names of layers that published weights use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.models.blocks import check_sizes, conv_norm_activate
from firstlight.models.fused import fused

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of two convolutions in each of the four stages, by the number of layers with weights."""


@dataclass(frozen=True)
class ResNetSpec:
    """The choice of a `ResNet`; called with a number of classes it builds one.

    depth: layers with weights, 18 or 34.
    small: a first layer for images of about 32×32; false is the one for photographs of about 224×224.

    Raises InputError for another depth.
    """

    depth: int = 18
    small: bool = True

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise InputError(f"there is no ResNet of depth {self.depth}", "Known: 18, 34.")

    def __call__(self, num_classes: int, channels: int = 3) -> ResNet:
        return ResNet(num_classes, channels=channels, **vars(self))


class ResNet(nn.Module):
    """Classifies N×`channels`×H×W images; `forward` returns N×`num_classes` logits.

    He et al. 2016 (arXiv 1512.03385), table 1: 11.69 and 21.80 million parameters for 1000 classes. The first
    layer halves the image twice, by a 7×7 convolution of stride 2 and a max-pool. A `small` one is a 3×3
    convolution of stride 1 without a max-pool, as has become usual on CIFAR-10; its weights do not fit those
    published for the other.

    fields: those of `ResNetSpec`. Weights on disk, such as those published for ImageNet, are taken by
    `models.weights.load_weights(model, path, head="fc")`; images must be normalised as theirs were.
    """

    conv_norms = (("conv1", "bn1"),)

    def __init__(self, num_classes: int, *, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        check_sizes(num_classes, channels)
        spec = ResNetSpec(**fields)
        kernel, stride, padding = (3, 1, 1) if spec.small else (7, 2, 3)
        self.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if spec.small else nn.MaxPool2d(3, 2, padding=1)
        first, second, third, fourth = BLOCKS[spec.depth]
        self.layer1 = _stage(first, 64, 64, stride=1)
        self.layer2 = _stage(second, 64, 128, stride=2)
        self.layer3 = _stage(third, 128, 256, stride=2)
        self.layer4 = _stage(fourth, 256, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015 (arXiv 1502.01852), section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Return the N×512 numbers that the linear layer reads: the means of the last grid."""
        x = self.maxpool(conv_norm_activate(images, self.conv1, self.bn1, self.relu))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        """Return a copy for inference, with its batch norms folded; see `models.fused`."""
        return fused(self)

    def endpoints(self) -> dict[str, nn.Module]:
        """Name what Grad-CAM can look at: for 32×32 images and `small`, grids 32, 32, 16, 8 and 4 wide.

        For 224×224 images and the other first layer these are 112, 56, 28, 14 and 7.
        """
        stages = {"layer1": self.layer1, "layer2": self.layer2, "layer3": self.layer3, "layer4": self.layer4}
        return {"stem": self.relu, **stages}


class Shortcut(nn.Sequential):
    """1×1 convolution with batch norm: N×inputs×H×W in, N×outputs×⌈H/stride⌉×⌈W/stride⌉ out."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        return conv_norm_activate(x, conv, norm)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, each with batch norm, added to the block's input; ReLU after each.

    N×inputs×H×W in, N×outputs×⌈H/stride⌉×⌈W/stride⌉ out. Where these differ in size, a 1×1 convolution with
    batch norm brings the input to that of the output.
    """

    conv_norms = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = Shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        x = conv_norm_activate(x, self.conv1, self.bn1, self.relu)
        return conv_norm_activate(x, self.conv2, self.bn2, self.relu, branch=shortcut)


def _stage(count: int, inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    others = (BasicBlock(outputs, outputs, 1) for _ in range(count - 1))
    return nn.Sequential(first, *others)
