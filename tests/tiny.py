"""What the tests of the core share: a plain machine, a few images, a small network, random states."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from firstlight.data.images import ImageSet
from firstlight.machine.machine import Machine
from firstlight.machine.streams import seeded, stream

CPU = Machine(torch.device("cpu"), "fp32", 1, "test")


def random_images(count: int, channels: int = 3, height: int = 8, width: int = 8, *, seed: int = 0) -> Tensor:
    """Return uint8 noise, count×channels×height×width."""
    size = (count, channels, height, width)
    return torch.randint(0, 256, size, generator=stream(seed, "images"), dtype=torch.uint8)


def image_set(count: int = 24, *, classes: int = 4, seed: int = 0, size: int = 8) -> ImageSet:
    """Return noise whose brightness tells the class, so that a small network can learn it."""
    labels = torch.arange(count) % classes
    images = (random_images(count, height=size, width=size, seed=seed) // 4).int()
    images += (labels * 180 // classes).view(-1, 1, 1, 1)
    return ImageSet(
        images=images.to(torch.uint8),
        labels=labels,
        classes=tuple(f"class {number}" for number in range(classes)),
        mean=(0.4, 0.45, 0.5),
        std=(0.2, 0.25, 0.3),
        names=[f"image {number}" for number in range(count)],
    )


class TinyNet(nn.Module):
    """Convolution, batch norm, ReLU, mean over the grid, linear; the same weights for the same seed."""

    def __init__(self, classes: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed, "tiny"):
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu()
        return self.linear(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a hash over the bits of tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().numpy().tobytes())
    return sha.hexdigest()


def global_random_states() -> tuple[object, ...]:
    """Return the states of the global streams of torch, numpy and Python, to be compared."""
    numpy = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().tolist(), numpy["key"].tolist(), numpy["pos"], random.getstate()
