"""Recipes for CIFAR-10."""

from __future__ import annotations

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.data.cifar import Cifar10
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.recipe import Recipe
from firstlight.training.optimizers import SGD


def assignment() -> Recipe:
    """The course's assignment to the letter; what it leaves free is as in davidcpage/cifar10-fast.

    It trains on all 50,000 images and keeps the last epoch, so it needs no validation images.
    """
    return Recipe(
        name="cifar10.assignment",
        data=Cifar10(),
        model=CustomResNetSpec(width=64, bias=False, logit_scale=0.125),
        augment=(Crop(32, pad=4, padding="reflect"), FlipLR(), Cutout(8)),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        batch_size=512,
        epochs=24,
        peak_epoch=5,
        validation=0,
    )
