"""A first layer that gives published weights their images as these were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from firstlight.errors import InputError


class Renormalisation(nn.Module):
    """Undoes the normalisation of a set of images, and applies that of published weights.

    N×`channels`×H×W in, N×3×H×W out, fp32. One channel, of grey images, becomes three equal ones.

    own_mean, own_std: of the published weights, for red, green and blue, of pixel values scaled to 0…1. Until
        `set` is called, images are taken as normalised by these.

    Firstlight normalises images by the mean and std of the training set before any network sees them. Sets
    differ: on product photos with a white ground the mean is near 1, and a frozen network would see other
    colours than it was trained on. The numbers are buffers, so they are saved with the weights: whoever loads
    the network, or exports it, normalises images as in training and has no second rule to follow.

    Raises InputError where there are neither three channels nor one.
    """

    own_mean: Tensor
    own_std: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, own_mean: Sequence[float], own_std: Sequence[float], channels: int = 3) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise InputError(f"published weights take images of 1 or 3 channels, not {channels}")
        for name, numbers in (("own_mean", own_mean), ("own_std", own_std)):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)
        self.register_buffer("mean", torch.tensor(own_mean[:channels]))
        self.register_buffer("std", torch.tensor(own_std[:channels]))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say by which mean and std the images are normalised: one number per channel, of values in 0…1.

        Raises InputError where there are more or fewer numbers.
        """
        if not len(mean) == len(std) == len(self.mean):
            raise InputError(f"mean and std need {len(self.mean)} numbers each, one per channel")
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        shift, scale = (self.mean - self.own_mean) / self.own_std, self.std / self.own_std
        return torch.addcmul(shift.view(1, 3, 1, 1), images.float(), scale.view(1, 3, 1, 1))
