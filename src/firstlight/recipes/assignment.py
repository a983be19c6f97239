"""The course's assignment as a checklist: what it fixes, and after a run whether that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstlight.data.augment import Augmentation, Crop, Cutout, FlipLR
from firstlight.data.images import DataFacts
from firstlight.machine.streams import seeded
from firstlight.models.network import Layer, layers
from firstlight.recipe import Recipe
from firstlight.training.history import History
from firstlight.training.schedule import OneCycle

RECIPES = ("cifar10.assignment", "cifar10.assignment_plus", "shapes.demo")
"""The recipes that are held to the assignment."""

_CBR = ("conv", "batch norm", "ReLU")
_CPBR = ("conv", "max-pool 2", "batch norm", "ReLU")
_RESIDUAL = (*_CBR, *_CBR, "add")
_ASSIGNMENT = (
    # part, operations, width in units of PrepLayer's, side of the 3×3 convolutions' output, side at the end
    ("prep", _CBR, 1, 32, 32),
    ("layer1", (*_CPBR, *_RESIDUAL), 2, 32, 16),
    ("layer2", _CPBR, 4, 16, 8),
    ("layer3", (*_CPBR, *_RESIDUAL), 8, 8, 4),
    ("pool", ("max-pool 4",), 8, 4, 1),
    ("linear", ("linear",), None, None, None),
)


@dataclass(frozen=True)
class Line:
    """One line of the assignment. holds: None before a run, where only a run can tell."""

    text: str
    holds: bool | None

    def __str__(self) -> str:
        return f"{ {True: '✓', False: '✗', None: '☐'}[self.holds] } {self.text}"


def checklist(
    recipe: Recipe, facts: DataFacts, history: History | None = None, rates: tuple[float, float] | None = None
) -> list[Line]:
    """Compare a recipe of the assignment with it, line by line; any other recipe has no lines.

    facts: of the images. history, rates (LRMAX, LRMIN): of a finished run, which is then held to the same
    lines. A narrower network and another set of images pass: topology and schedule are compared.
    """
    if recipe.name not in RECIPES:
        return []
    with seeded(0, "shown"), torch.device("meta"):  # its topology is all that counts
        network = layers(recipe.model(len(facts.classes), facts.shape[0]), facts.shape)
    schedule = recipe.schedule
    complete = history is not None and len(history) == recipe.epochs and rates is not None
    lrs = [epoch.lr for epoch in history or ()]
    peaks = complete and lrs.index(max(lrs)) + 1 == 5
    ends = complete and rates is not None and lrs[-1] == rates[1]
    found = schedule.peak_lr is None and schedule.min_lr is None
    numbers = f": LRMAX {rates[0]:g}, LRMIN {rates[1]:g}" if rates else ""
    parameters = sum(layer.parameters for layer in network)
    transforms = " → ".join(map(_in_words, recipe.augment))
    peak_epoch = schedule.peak_epoch if isinstance(schedule, OneCycle) else 0.0
    curve = schedule.curve if isinstance(schedule, OneCycle) else "another schedule"

    def ran(planned: bool, done: bool) -> bool | None:
        """Return whether a plan holds, None while only the run can tell whether it was carried out."""
        if not planned:
            return False
        if history is None:
            return None
        return done

    return [
        Line(
            "PrepLayer, Layer1 + R1, Layer2, Layer3 + R2, max-pool 4, linear; softmax in the loss: "
            f"{parameters:,} parameters",
            _is_custom_resnet(network),
        ),
        Line(
            f"{transforms}, normalised with the set's own statistics",
            _are_transforms(recipe.augment) and not recipe.sides,
        ),
        Line(f"batch size {recipe.batch_size}, last short batch dropped", recipe.batch_size == 512),
        Line(f"{recipe.epochs} epochs", ran(recipe.epochs == 24, complete)),
        Line(
            f"one-cycle, {curve}, highest at the end of epoch {peak_epoch:.3g}", ran(peak_epoch == 5, peaks)
        ),
        Line(f"both rates found{numbers}" if found else f"rates given{numbers}", ran(found, complete)),
        Line("no annihilation: the last step is taken at LRMIN", ran(peak_epoch > 0, ends)),
        Line(
            "the last epoch's weights; no averaging, no test-time augmentation",
            recipe.average_decay == 0 and not recipe.best_on_validation,
        ),
    ]


def _in_words(part: Augmentation) -> str:
    match part:
        case Crop():
            return f"RandomCrop {part.size}×{part.size} after padding of {part.pad}"
        case FlipLR():
            if not part.mirrors:
                return "no FlipLR"
            return "FlipLR, alternating" if part.alternate else "FlipLR"
        case Cutout():
            return f"CutOut {part.size}×{part.size} filled with the mean"
        case _:
            return str(part)


def _are_transforms(parts: Sequence[Augmentation]) -> bool:
    match parts:
        case [Crop(size=32, pad=4), FlipLR(flip="on"), Cutout(size=8)]:
            return True
        case _:
            return False


def _is_custom_resnet(network: Sequence[Layer]) -> bool:
    """Compare each layer's name, operation and output with the assignment's table, of any width."""
    width = network[0].output[0]
    expected: list[tuple[str, str, tuple[int, ...] | None]] = []
    for part, operations, units, side, side_after in _ASSIGNMENT:
        for operation in operations:
            if operation.startswith("max-pool"):
                side = side_after
            output = None if units is None or side is None else (units * width, side, side)
            expected.append((part, operation, output))
    if len(network) != len(expected):
        return False
    return all(
        layer.name.split(".")[0] == part
        and layer.operation.startswith(operation)
        and output in (None, layer.output)
        for layer, (part, operation, output) in zip(network, expected, strict=True)
    )
