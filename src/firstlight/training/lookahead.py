"""Look-ahead: slow weights that follow those in training, and from time to time become them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EVERY = 5
"""Steps from one pull to the next."""

_POWER = 3
"""By which the slow weights' inertia grows with the share of the steps taken."""


class Lookahead:
    """Slow copies of a network's weights and of batch norm's statistics.

    Every `EVERY` steps a copy becomes kept × slow + (1 - kept) × trained, and so does the network. `kept`
    grows from 0 to decay^EVERY with the cube of the share of the steps taken: while the rate is high the
    weights move freely, and towards the end their noise is averaged out. The last step leaves the slow
    weights. Zhang et al. 2019 (arXiv 1907.08610); the cube is that of Jordan 2024 (arXiv 2404.00498).

    decay: of the slow weights, in a step, at the end of training.
    slow: by the names of `model.state_dict()`, on the model's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.slow = {name: value.detach().clone() for name, value in _moving(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, steps: int) -> None:
        """Pull the weights after `step` of `steps` steps, where it is time."""
        if step % EVERY and step < steps:
            return
        kept = self.decay**EVERY * (step / steps) ** _POWER if step < steps else 1.0
        trained, slow = list(_moving(model).values()), list(self.slow.values())
        torch._foreach_lerp_(slow, trained, 1 - kept)
        torch._foreach_copy_(trained, slow)


def _moving(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
