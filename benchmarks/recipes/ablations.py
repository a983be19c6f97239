"""What each part of cifar10.fast is worth: the recipe without it, on images held out of training.

    python -m benchmarks.recipes.ablations --data-dir DIR [--seeds 0] [--held-out 10000] [--parts NAME ...]
        [--record]

Every part is taken away alone, from the same seed, so from the same images in the same order. With --record
each run becomes a row of ablations.csv, which publish/tables.py makes a table of. The test set is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from benchmarks.recipes.choose import AS_IT_STANDS, Change, compare, parser
from firstlight.jobs.job import Job
from firstlight.machine.streams import seeded
from firstlight.models.fast_net import FastNet
from firstlight.recipe import Recipe
from firstlight.training.optimizers import Muon


@dataclasses.dataclass(frozen=True)
class Nesterov(Muon):
    """The recipe's optimizer with ordinary Nesterov momentum for filters too, and weight decay on them.

    filter_lr_factor: on the schedule's rate, for filters; the other weights are trained as they were.
    """

    filter_lr_factor: float = 1.0

    def __call__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, fused: bool = False
    ) -> torch.optim.Optimizer:
        optimizer = super().__call__(parameters, lr, fused=fused)
        filters = optimizer.param_groups[0]
        filters |= {
            "orthogonal": False,
            "lr_factor": self.filter_lr_factor,
            "momentum": self.other_momentum,
            "weight_decay": 5e-4 * self.filter_lr_factor,
        }
        return optimizer


def with_momentum(filter_lr_factor: float) -> Change:
    def changed(recipe: Recipe) -> Recipe:
        assert isinstance(recipe.optimizer, Muon)
        settings = dataclasses.asdict(recipe.optimizer)
        return dataclasses.replace(recipe, optimizer=Nesterov(**settings, filter_lr_factor=filter_lr_factor))

    return changed


def setting(**values: Any) -> Change:
    return lambda recipe: recipe.replace(**values)


WITHOUT: dict[str, Change] = {
    AS_IT_STANDS: setting(),
    "whole images from the start": setting(sides=()),
    "first layer random and learned": setting(),
    "filters random at the start": setting(identity=False),
    "batch norm's weight learned": setting(norm_scale=True),
    "batch norm's bias at the linear layer's rate": setting(bias_lr_factor=16.0),
    "ReLU": setting(activation="relu"),
    "momentum for filters, rate 0.5": with_momentum(5.0),
    "momentum for filters, rate 1": with_momentum(10.0),
    "mirrored at random": setting(alternate=False),
    "no label smoothing": setting(label_smoothing=0.0),
}


def learn_first_layer(change: str, job: Job) -> None:
    """Replace the whitening's filters by random ones that are trained, where that is the change."""
    if change != "first layer random and learned":
        return
    assert isinstance(job.model, FastNet)
    first = job.model.whiten[0]
    assert isinstance(first, nn.Conv2d)
    with seeded(job.recipe.seed, "first layer"):
        first.reset_parameters()
    first.requires_grad_(True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=list(WITHOUT), default=list(WITHOUT), metavar="NAME")
    arguments = options.parse_args()
    changes = {name: WITHOUT[name] for name in arguments.parts}
    compare("cifar10.fast", changes, arguments, __file__, before=learn_first_layer)


if __name__ == "__main__":
    main()
