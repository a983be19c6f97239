"""A first layer that is computed from the images instead of learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError


class Whitening(nn.Conv2d):
    """A frozen 3×3 convolution; its outputs for the images it was fitted to are uncorrelated, of variance 1.

    N×channels×H×W in, N×outputs×H×W out; the second half of the outputs is the first, negated, so that the
    activation behind it loses neither sign. Until `fit` the filters are random. Coates & Ng 2012, "Learning
    feature representations with k-means", section 2.1; as a frozen layer in davidcpage/cifar10-fast.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        if outputs % 2 or not 2 <= outputs <= 2 * 9 * channels:
            raise InputError(
                f"whitening {channels} channels gives an even number of outputs up to {18 * channels}, "
                f"not {outputs}"
            )
        super().__init__(channels, outputs, 3, padding=1, bias=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor, floor: float = 5e-4) -> None:
        """Compute the filters from normalised images, N×C×H×W.

        floor: added to each variance, so that directions in which images hardly vary are not amplified.
        """
        count = self.out_channels // 2
        patches = F.unfold(images.double(), 3).transpose(1, 2).flatten(0, 1)  # one a row
        variances, directions = torch.linalg.eigh(patches.T.cov())
        variances, directions = variances[-count:].flip(0), directions.T[-count:].flip(0)
        # A direction and its opposite are both right: the largest component is made positive.
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        filters = directions * largest.sign() / (variances[:, None] + floor).sqrt()
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
