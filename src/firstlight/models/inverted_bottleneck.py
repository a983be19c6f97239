"""The blocks of EfficientNet-Lite: inverted bottlenecks whose convolutions are padded as TensorFlow pads."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


class SamePadding(nn.Module):
    """Zeros around N×C×H×W images as TensorFlow's "same" padding lays them, for a kernel of odd size.

    So that a convolution of this stride gives ⌈H/stride⌉ rows. An odd number of zeros has one more at the
    bottom and at the right: at stride 2 and an even H that differs from torch's padding.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._zeros(size) for size in x.shape[-2:])
        return F.pad(x, (left, right, top, bottom))

    def _zeros(self, size: int) -> tuple[int, int]:
        zeros = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return zeros // 2, zeros - zeros // 2


class ConvNorm(nn.Sequential):
    """Convolution with TensorFlow's "same" padding → batch norm (ε 1e-3) → ReLU6, if `active`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        layers = OrderedDict[str, nn.Module]()
        if stride > 1:
            layers["pad"] = SamePadding(kernel, stride)
        padding = 0 if stride > 1 else kernel // 2
        layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
        if active:
            layers["relu6"] = nn.ReLU6()
        super().__init__(layers)


class InvertedBottleneck(nn.Sequential):
    """1×1 convolution to more channels → depthwise convolution → 1×1 convolution to few, without activation.

    Sandler et al. 2018 (MobileNetV2, arXiv 1801.04381), section 3. An expansion of 1 leaves out the first.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = expansion * inputs
        layers = OrderedDict[str, nn.Module]()
        if expansion > 1:
            layers["expand"] = ConvNorm(inputs, wide)
        layers["depthwise"] = ConvNorm(wide, wide, kernel, stride, groups=wide)
        layers["project"] = ConvNorm(wide, outputs, active=False)
        super().__init__(layers)
