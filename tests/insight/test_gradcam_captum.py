"""Grad-CAM is what captum's is, at every endpoint of the network and for both classes of an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.data.shapes import Shapes
from firstlight.insight.gradcam import gradcam, gradcam_pair
from firstlight.machine.streams import seeded
from firstlight.models.custom_resnet import CustomResNet

LayerGradCam = pytest.importorskip(
    "captum.attr", reason="captum is not installed: pip install captum"
).LayerGradCam


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """Return normalised images and their labels."""
    images = Shapes(train=24, test=1).load()[0]
    return normalise(images.images, images.mean, images.std), images.labels


@pytest.fixture(scope="module")
def model(drawn: tuple[Tensor, Tensor]) -> CustomResNet:
    """Return a network whose running statistics are of these images: its maps are then not tiny."""
    with seeded(0, "captum"):
        network = CustomResNet(10, width=8)
    with torch.no_grad():
        for _ in range(60):
            network.train()(drawn[0])
    return network.eval()


@pytest.mark.parametrize("endpoint", ["prep", "layer1", "layer2", "layer3"])
def test_both_classes_agree_with_captum(
    model: CustomResNet, drawn: tuple[Tensor, Tensor], endpoint: str
) -> None:
    images, true = drawn
    with torch.no_grad():
        predicted = model(images).argmax(1)
    assert (predicted != true).any()
    theirs = LayerGradCam(model, model.endpoints()[endpoint])
    pair = gradcam_pair(model, images, predicted, true, endpoint, batch_size=10)
    for found, targets in zip(pair, (predicted, true), strict=True):
        expected = theirs.attribute(images, targets, relu_attributions=True).detach()[:, 0]
        assert found.maps.shape == expected.shape
        alone = gradcam(model, images, targets, endpoint)
        for maps in (found.maps, alone.maps):
            apart = float((maps - expected).abs().max())
            # Of the largest value as well, lest small maps agree whatever they show.
            assert apart <= 1e-5 * min(1.0, float(expected.max()))
