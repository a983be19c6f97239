"""What a run remembers of its training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossMemory:
    """The cross-entropy of every training image when it was last trained on, by which easy ones are left out.

    Loshchilov & Hutter 2015, "Online batch selection for faster training of neural networks" (arXiv
    1511.06343), section 3, who rank by such losses too. All fp32, on the device.

    known: N, before the current epoch; infinite for images not seen yet. now: N, with what the epoch has
    added. batch: those of the batch just taken, which a step writes.
    """

    known: Tensor
    now: Tensor
    batch: Tensor

    @classmethod
    def of(cls, images: int, batch_size: int, device: torch.device) -> LossMemory:
        """Return an empty memory of a number of images."""
        known = torch.full((images,), math.inf, device=device)
        return cls(known, known.clone(), torch.zeros(batch_size, device=device))

    def begin_epoch(self) -> None:
        self.known.copy_(self.now)

    def keep(self, places: Tensor) -> None:
        """Note the batch just taken; places: the indices of its images, int64."""
        self.now.index_copy_(0, places, self.batch)

    def forget(self) -> None:
        for losses in (self.known, self.now):
            losses.fill_(math.inf)
