"""A recipe as a checklist: what the assignment fixes, what it leaves free, and after a run what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firstlight.data.augment import Crop, Cutout, FlipLR
from firstlight.models.blocks import Layer
from firstlight.recipe import Recipe
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding


@dataclass(frozen=True)
class Line:
    """One line of the assignment. holds: None before a run, where only a run can tell."""

    text: str
    holds: bool | None


def checklist(
    recipe: Recipe,
    layers: Sequence[Layer],
    history: History | None = None,
    finding: LRFinding | None = None,
) -> list[Line]:
    """Compare a recipe, its network's layers and, where given, a finished run with the assignment, line by line.

    A narrower network or another set of images is held to the same lines, in proportion.
    """
    width = recipe.model.width
    parameters = sum(layer.parameters for layer in layers)
    lines = [
        Line(f"network: PrepLayer, Layer1 + R1, Layer2, Layer3 + R2, max-pool 4, linear; "
             f"{parameters:,} parameters", _is_custom_resnet(layers, width)),
        Line(f"augmentation: {' → '.join(map(_part, recipe.augment))} → normalise", _is_augmentation(recipe)),
        Line(f"batch size {recipe.batch_size}, the last short batch dropped", recipe.batch_size == 512),
        Line(f"{recipe.epochs} epochs", _kept(recipe.epochs == 24, history, lambda h: len(h) == 24)),
    ]
    rate_at = {epoch.epoch: epoch.lr for epoch in history} if history else {}
    rises = None if not rate_at else max(rate_at, key=rate_at.__getitem__) == recipe.peak_epoch
    lines.append(Line(f"one-cycle, highest at the end of epoch {recipe.peak_epoch:g}",
                      recipe.peak_epoch == 5 and rises is not False))
    found = recipe.peak_lr is None and recipe.min_lr is None
    rates = "" if finding is None else f": LRMAX {finding.peak_lr:g}, LRMIN {finding.min_lr:g}"
    lines.append(Line(f"both rates {'found' if found else 'given, not found'}{rates}", found))
    last = list(history)[-1].lr if history else None
    lines.append(Line("no annihilation: the last step is taken at LRMIN, not below",
                      None if last is None or finding is None else last == finding.min_lr))
    plain = recipe.average_decay == 0 and not recipe.best_on_validation
    lines.append(Line("the last epoch's weights, no averaging, no test-time augmentation", plain))
    return lines


def _kept(planned: bool, history: History | None, test) -> bool | None:  # type: ignore[no-untyped-def]
    return planned and (history is None or bool(test(history)))
