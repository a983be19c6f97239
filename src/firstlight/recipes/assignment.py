"""A recipe as a checklist: what the assignment fixes, what it leaves free, and after a run what was kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from firstlight.data.augment import Augmentation, Crop, Cutout, FlipLR
from firstlight.machine.streams import seeded
from firstlight.models.blocks import Layer
from firstlight.models.blocks import layers as layers_of
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.recipe import Recipe
from firstlight.training.history import History
from firstlight.training.optimizers import Muon
from firstlight.training.schedule import OneCycle

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
    recipe: Recipe, layers: Sequence[Layer], history: History | None = None, schedule: OneCycle | None = None
) -> list[Line]:
    """Compare a recipe and its network's layers with the assignment, line by line.

    history, schedule: of a finished run, which is then held to the same lines. A narrower network and
    another set of images pass, since the course's topology and schedule are what is compared. A recipe for
    another network does not want to be the assignment: it has no lines.
    """
    if not isinstance(recipe.model, CustomResNetSpec):
        return []
    done = history is not None and len(history) == recipe.epochs and schedule is not None
    rates = [epoch.lr for epoch in history or ()]
    peaks = done and rates.index(max(rates)) + 1 == round(recipe.peak_epoch)
    ends = done and schedule is not None and rates[-1] == schedule.min_lr
    found = recipe.peak_lr is None and recipe.min_lr is None
    numbers = f": LRMAX {schedule.peak_lr:g}, LRMIN {schedule.min_lr:g}" if schedule else ""
    parameters = sum(layer.parameters for layer in layers)
    transforms = " → ".join(map(_in_words, recipe.augment))

    def ran(planned: bool, kept: bool) -> bool | None:
        """What was planned must hold at once; that it was kept is known after the run."""
        return False if not planned else kept if history is not None else None

    return [
        Line(
            "PrepLayer, Layer1 + R1, Layer2, Layer3 + R2, max-pool 4, linear; softmax in the loss: "
            f"{parameters:,} parameters",
            _is_custom_resnet(layers, recipe.model.width),
        ),
        Line(
            f"{transforms}, normalised with the set's own statistics",
            _are_transforms(recipe.augment) and not recipe.sides,
        ),
        Line(f"batch size {recipe.batch_size}, last short batch dropped", recipe.batch_size == 512),
        Line(f"{recipe.epochs} epochs", ran(recipe.epochs == 24, done)),
        Line(
            f"one-cycle, {recipe.schedule}, highest at the end of epoch {recipe.peak_epoch:.3g}",
            ran(recipe.peak_epoch == 5, peaks),
        ),
        Line(f"both rates found{numbers}" if found else f"rates given{numbers}", ran(found, done)),
        Line("no annihilation: the last step is taken at LRMIN", ran(True, ends)),
        Line(
            "the last epoch's weights; no averaging, no test-time augmentation",
            recipe.average_decay == 0 and not recipe.best_on_validation,
        ),
    ]


def free_choices(
    recipe: Recipe, precision: str = "bf16 where that is faster here, else fp32"
) -> dict[str, str]:
    """List what the assignment leaves free, and what the recipe chose."""
    optimizer, model = recipe.optimizer, recipe.model
    settings = ", ".join(
        f"{key.replace('_', ' ')} {value:g}"
        if not isinstance(value, bool)
        else ("Nesterov" if value else "plain")
        for key, value in vars(optimizer).items()
        if key != "weight_decay"
    )
    padding = ", ".join(part.padding for part in recipe.augment if isinstance(part, Crop)) or "none"
    return {
        **_plan(recipe),
        "size of the images": _sizes(recipe.sides),
        "optimizer": f"{type(optimizer).__name__}, {settings}",
        "weight decay": f"{optimizer.weight_decay:g}, on all weights"
        + (" but filters" if isinstance(optimizer, Muon) else ""),
        "L1": f"{recipe.l1:g}",
        "label smoothing": f"{recipe.label_smoothing:g}",
        "gradient clipping": f"{recipe.clip_norm:g}" if recipe.clip_norm else "none",
        "sharpness": f"gradients taken {recipe.sharpness:g} uphill" if recipe.sharpness else "not minimised",
        "averaging of weights": f"decay {recipe.average_decay:g} a step" if recipe.average_decay else "none",
        "activation": model.activation,
        "initialisation": "torch's own (Kaiming uniform)"
        + (", the first filters of each layer the identity" if model.identity else ""),
        "batch norm": "scale and offset learned" if model.norm_scale else "offset learned, scale 1",
        "bias in the linear layer": "yes" if isinstance(model, CustomResNetSpec) and model.bias else "no",
        "logit scale": f"{model.logit_scale:g}",
        "padding mode": padding,
        "validation images": f"{recipe.validation:,}" if recipe.validation else "none, nothing is chosen",
        "precision": precision,
    }


def _sizes(sides: tuple[int, ...]) -> str:
    """Say to what the images of the first epochs are resized, as in "2 at 16×16, 4 at 24×24, then whole"."""
    runs = [f"{len(list(same))} at {side}×{side}" for side, same in itertools.groupby(sides)]
    return ", ".join(["epochs: " + runs[0], *runs[1:], "then whole"]) if runs else "whole"


def _plan(recipe: Recipe) -> dict[str, str]:
    """Say of a recipe for another network what the checklist would have said."""
    if isinstance(recipe.model, CustomResNetSpec):
        return {}
    rates = (recipe.peak_lr, recipe.min_lr)
    peak, low = ("found" if rate is None else f"{rate:g}" for rate in rates)
    return {
        "transforms": " → ".join(map(_in_words, recipe.augment)),
        "batch size": f"{recipe.batch_size}",
        "schedule": f"{recipe.epochs} epochs, {recipe.schedule}, to a rate of {peak} at epoch "
        f"{recipe.peak_epoch:.3g}, down to {low}",
    }


def _in_words(part: Augmentation) -> str:
    match part:
        case Crop():
            return f"RandomCrop {part.size}×{part.size} after padding of {part.pad}"
        case FlipLR():
            return "FlipLR, alternating" if part.alternate else "FlipLR"
        case Cutout():
            return f"CutOut {part.size}×{part.size} filled with the mean"
        case _:
            return str(part)


def _are_transforms(parts: Sequence[Augmentation]) -> bool:
    match parts:
        case [Crop(size=32, pad=4), FlipLR(), Cutout(size=8)]:
            return True
        case _:
            return False


def _is_custom_resnet(layers: Sequence[Layer], width: int) -> bool:
    """Compare each layer's place, operation and output with the assignment's table."""
    expected: list[tuple[str, str, tuple[int, ...] | None]] = []
    for part, operations, units, side, side_after in _ASSIGNMENT:
        for operation in operations:
            if operation.startswith("max-pool"):
                side = side_after
            output = None if units is None or side is None else (units * width, side, side)
            expected.append((part, operation, output))
    if len(layers) != len(expected):
        return False
    return all(
        layer.name.split(".")[0] == part
        and layer.operation.startswith(operation)
        and output in (None, layer.output)
        for layer, (part, operation, output) in zip(layers, expected, strict=True)
    )


def layer_table(layers: Sequence[Layer]) -> list[str]:
    """Write layers as lines of a table: name, operation, output, parameters; the total last."""
    rows = [
        (layer.name, layer.operation, "×".join(map(str, layer.output)), layer.parameters) for layer in layers
    ]
    name, operation, output = (max(len(row[k]) for row in rows) for k in range(3))  # type: ignore[arg-type]
    lines = [
        f"{row[0]:{name}}  {row[1]:{operation}}  {row[2]:>{output}}  {row[3] or '':>9,}"
        if row[3]
        else f"{row[0]:{name}}  {row[1]:{operation}}  {row[2]:>{output}}"
        for row in rows
    ]
    total = sum(layer.parameters for layer in layers)
    return [*lines, f"{'parameters in all':{name + operation + output + 4}}  {total:>9,}"]


def recipe_lines(recipe: Recipe, purpose: str) -> list[str]:
    """Write a recipe for a terminal: its network layer by layer, what is fixed, what is free."""
    facts = recipe.data.facts()
    shape = facts.shape
    with seeded(0, "shown"):
        rows = layers_of(recipe.model(len(facts.classes), shape[0]), shape)
    free = free_choices(recipe)
    width = max(map(len, free))
    fixed = [f"  {line}" for line in checklist(recipe, rows)]
    return [
        f"{recipe.name}: {purpose}",
        "",
        f"The network, for an image of {'×'.join(map(str, shape))}",
        *(f"  {line}" for line in layer_table(rows)),
        "",
        *(["Fixed by the assignment (☐ is ticked by the run)", *fixed, ""] if fixed else []),
        "Free, and chosen here" if fixed else "Chosen here",
        *(f"  {key:{width}}  {value}" for key, value in free.items()),
    ]
