"""Recipes for CIFAR-10."""

from __future__ import annotations

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.data.cifar10 import Cifar10
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.recipe import Recipe
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, Muon
from firstlight.training.range_test import RangeTest
from firstlight.training.schedule import OneCycle


def assignment() -> Recipe:
    """The course's assignment to the letter; what it leaves free is as in davidcpage/cifar10-fast.

    Test accuracy 94.11 % (mean of 3 seeds, without test-time augmentation) in 46 minutes on two cores of an
    AMD EPYC with AVX-512 BF16. It trains on all 50,000 images and keeps the last epoch's weights.

        firstlight train cifar10.assignment
    """
    return Recipe(
        name="cifar10.assignment",
        data=Cifar10(),
        model=CustomResNetSpec(width=64, bias=False, logit_scale=0.125),
        augment=(Crop(32, pad=4, padding="reflect"), FlipLR(), Cutout(8)),
        optimizer=SGD(momentum=0.9, weight_decay=5e-4),
        schedule=OneCycle(peak_epoch=5),
        finder=RangeTest(),  # which found the rates of all published runs
        batch_size=512,
        epochs=24,
        validation=0,
    )


def assignment_plus() -> Recipe:
    """The assignment's network, transforms, batch and one-cycle; what it leaves free is chosen for accuracy.

    Test accuracy 95.59 % (mean of 3 seeds, without test-time augmentation) in 67 minutes on two cores of an
    Intel Xeon with AVX-512 FP16. docs/recipes.md tells what each part is worth.

        firstlight train cifar10.assignment_plus
    """
    return Recipe(
        name="cifar10.assignment_plus",
        data=Cifar10(),
        model=CustomResNetSpec(
            width=64, bias=False, logit_scale=1 / 16, activation="gelu", identity=True, norm_scale=False
        ),
        augment=(Crop(32, pad=4, padding="reflect"), FlipLR(alternate=True), Cutout(8)),
        optimizer=Muon(momentum=0.8, bias_lr_factor=340.0, linear_lr_factor=23.0, weight_decay=0.05),
        schedule=OneCycle(peak_epoch=5, peak_lr=0.07, min_lr=0.001),
        objective=Objective(label_smoothing=0.2, sharpness=0.25),
        batch_size=512,
        epochs=24,
        validation=0,
    )


def fast() -> Recipe:
    """The most accuracy per second: a plain network, ten epochs, the first five on smaller images.

    Test accuracy 94.02 % with test-time augmentation, 93.27 % without (mean of 5 seeds), in 369 seconds on
    two cores of an AMD EPYC (Zen 4) with AVX-512 BF16, which is 1.21 times one epoch of the assignment in
    plain PyTorch there. After airbench94_muon (KellerJordan/cifar10-airbench), for a CPU; docs/recipes.md
    tells what each part is worth.

        firstlight train cifar10.fast
    """
    return Recipe(
        name="cifar10.fast",
        data=Cifar10(),
        model=FastNetSpec(large_tiles=True),
        augment=(Crop(32, pad=2, padding="reflect"), FlipLR(alternate=True)),
        optimizer=Muon(momentum=0.8, bias_lr_factor=240.0, linear_lr_factor=16.0, weight_decay=0.05),
        schedule=OneCycle(peak_epoch=0.02, peak_lr=0.1, min_lr=0.001),
        objective=Objective(label_smoothing=0.2),
        batch_size=500,
        epochs=10,
        sides=(24,) * 5,
        validation=0,
        tta_shift=1,
        tta_below=0.7,
    )
