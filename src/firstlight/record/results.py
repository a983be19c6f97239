"""What the files of a run folder hold, each checked before it is used: a run folder may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.data.augment import Augmentation
from firstlight.data.images import DataFacts
from firstlight.errors import InputError, printable
from firstlight.insight.evaluation import Evaluation
from firstlight.machine.streams import seeded, stream
from firstlight.models.own import OwnNetwork
from firstlight.recipe import Recipe
from firstlight.record.run_folder import MOST_LINES, RunFolder
from firstlight.record.values import (
    MOST_CHANNELS,
    MOST_CLASSES,
    MOST_COUNT,
    MOST_SIDE,
    attempted,
    check_tensor,
    parse,
    read,
    shown,
    value_of,
)
from firstlight.training.history import Epoch, History
from firstlight.training.lr_finder import LRFinding

INFINITE = float("inf")
MOST_EPOCHS = 1_000_000
_MOST_GROWTH = 8
"""How much larger than a training image an augmentation may make it, in side."""
_INTS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_EPOCH = {
    "epoch": (1, MOST_EPOCHS),
    "step": (1, MOST_COUNT),
    "lr": (0, 1e300),
    "train_loss": (-INFINITE, INFINITE),  # that it is no number any more is a result
    "validation_loss": (-INFINITE, INFINITE),
    "test_loss": (-INFINITE, INFINITE),
    "train_accuracy": (0, 1),
    "images_per_second": (0, 1e12),
    "train_seconds": (0, 1e10),
    "validation_accuracy": (0, 1),
    "test_accuracy": (0, 1),
}
_FINDING = {
    "rates": (0, 1e12),
    "losses": (-INFINITE, INFINITE),  # that a rate diverged is a measurement
    "smoothed": (-INFINITE, INFINITE),
    "peak_lr": (0, 1e300),
    "min_lr": (0, 1e300),
    "seconds": (0, 1e10),
    "cost": (0, 1e9),
    "interval": (0, 1e12),
    "flat": (0, 1e12),
    "regret": (-1, 1),
}


def data_facts(environment: Mapping[str, Any], where: str) -> DataFacts:
    """Return what an environment says of the images; where: names its file."""
    values, name = environment.get("data"), f"{where} does not describe the data"
    if not isinstance(values, dict):
        raise InputError(name)
    fields: dict[str, Any] = {}
    for field, hint, bounds in (
        ("classes", tuple[str, ...], (0.0, 0.0)),
        ("shape", tuple[int, int, int], (1, MOST_SIDE)),
        ("mean", tuple[float, ...], (-1e3, 1e3)),
        ("std", tuple[float, ...], (1e-9, 1e3)),
    ):
        if field not in values:
            raise InputError(f"{name}: {field} is missing")
        fields[field] = value_of(hint, values[field], f"{name}: {field}", bounds)
    facts = DataFacts(**fields)
    channels = facts.shape[0]
    if channels > MOST_CHANNELS or len(facts.mean) != channels or len(facts.std) != channels:
        raise InputError(f"{name}: mean and std need a number for each of {channels} channels")
    if not 1 <= len(facts.classes) <= MOST_CLASSES or len(set(facts.classes)) < len(facts.classes):
        raise InputError(f"{name}: {len(facts.classes):,} classes, or two of one name")
    return facts


def history_of(rows: object, where: str) -> History:
    """Return a history from its rows; InputError names the first that is no epoch, or does not follow."""
    if not isinstance(rows, list) or len(rows) > MOST_EPOCHS:
        raise InputError(f"{where} is no list of epochs")
    epochs: list[Epoch] = []
    for number, row in enumerate(rows, 1):
        epoch = read(Epoch, row, f"row {number} of {where}", _EPOCH)
        if epochs and (epoch.epoch <= epochs[-1].epoch or epoch.step <= epochs[-1].step):
            raise InputError(f"row {number} of {where} does not follow the one before")
        epochs.append(epoch)
    return History(tuple(epochs))


def history(folder: RunFolder, name: str) -> History:
    """Return the history in a file of JSON lines."""
    where = printable(folder.path / name)
    lines = folder.read_bytes(name, MOST_LINES).splitlines()
    if len(lines) > MOST_EPOCHS:
        raise InputError(f"{where} has more than {MOST_EPOCHS:,} epochs")
    rows = [parse(line, f"line {number} of {where}") for number, line in enumerate(lines, 1)]
    return history_of(rows, where)


def finding(values: Mapping[str, Any], where: str) -> LRFinding:
    """Return the finding of a learning-rate finder."""
    result = read(LRFinding, dict(values), where, _FINDING)
    if not len(result.rates) == len(result.losses) == len(result.smoothed):
        raise InputError(f"{where} has not as many losses as rates")
    if not 0 < result.min_lr <= result.peak_lr:
        raise InputError(f"{where}: LRMIN {result.min_lr:g} and LRMAX {result.peak_lr:g} are no rates")
    if min(result.rates, default=1) <= 0:
        raise InputError(f"{where} has a rate that is not positive")
    return result


def evaluation(tensors: Mapping[str, Tensor], key: str, classes: tuple[str, ...], where: str) -> Evaluation:
    """Return the answers on the test set; images are named by their index. key: of the probabilities."""
    count = len(classes)
    labels = check_tensor(tensors.get("labels"), f"{where}: labels", _INTS, (None,), (0, count - 1)).long()
    shape = (len(labels), count)
    rows = check_tensor(tensors.get(key), f"{where}: {key}", _FLOATS, shape, (0, 1.01)).float()
    names = [f"#{index}" for index in range(len(labels))]
    return Evaluation(classes, labels, rows, names, key.endswith("tta"))


def kept_images(
    tensors: Mapping[str, Tensor], shape: tuple[int, int, int], count: int, where: str
) -> tuple[Tensor, Tensor]:
    """Return test images and their indices in the test set of `count`; shape: of an image."""
    indices = tensors.get("indices")
    indices = check_tensor(indices, f"{where}: indices", _INTS, (None,), (0, count - 1)).long()
    wanted = (len(indices), *shape)
    images = check_tensor(tensors.get("images"), f"{where}: images", (torch.uint8,), wanted)
    if len(indices.unique()) < len(indices):
        raise InputError(f"{where}: an image is there twice")
    return images, indices


def samples(
    tensors: Mapping[str, Tensor], facts: DataFacts, augment: Sequence[Augmentation], where: str
) -> dict[str, Tensor]:
    """Return some training images with the draws that augmented them, which fit the augmentations."""
    classes = len(facts.classes)
    images = tensors.get("images")
    images = check_tensor(images, f"{where}: images", (torch.uint8,), (None, *facts.shape))
    count = len(images)
    if "labels" in tensors:  # what is missing is named by who draws the pictures
        check_tensor(tensors["labels"], f"{where}: labels", _INTS, (count,), (0, classes - 1))
    height, width = facts.shape[1:]
    for number, part in enumerate(augment):
        key = f"draws_{number}"
        if key not in tensors:
            break
        check_tensor(tensors[key], f"{where}: {key}", (torch.int64,), (count, None), (-(2**31), 2**31))
        # The augmentation itself refuses sizes that do not fit the images, before it makes any.
        draws = _sampled(part, height, width, where)
        if draws is not None and draws.shape[1] != tensors[key].shape[1]:
            raise InputError(f"{where}: {key} has {tensors[key].shape[1]} columns, not {draws.shape[1]}")
        height, width = attempted(lambda part=part, s=(height, width): part.output_size(*s), where)  # type: ignore[misc]
        largest = _MOST_GROWTH * max(facts.shape[1:])
        if not (1 <= height <= largest and 1 <= width <= largest):
            raise InputError(f"{where}: {shown(part)} makes images of {height}×{width}")
    return dict(tensors)


def _sampled(part: Augmentation, height: int, width: int, where: str) -> Tensor | None:
    """Return an augmentation's draws for one image, None for one that is not built in."""
    draws = attempted(
        lambda: part.sample(torch.zeros(1, dtype=torch.int64), height, width, lambda _: stream(0, "fit"), 0),
        f"{where}: {shown(part)} does not fit the images",
    )
    return draws if isinstance(draws, Tensor) and draws.ndim == 2 else None


def network(folder: RunFolder, name: str, recipe: Recipe, facts: DataFacts) -> nn.Module:
    """Return the trained network, on the CPU, in fp32, in evaluation mode.

    It is first built without memory, and compared with the weights by name and shape: a recipe that asks for
    more than the file holds is refused before anything is allocated.
    """
    weights = folder.read_tensors(name)
    size = len(facts.classes), facts.shape[0]
    if not isinstance(recipe.model, OwnNetwork):
        # A user's own network may compute with its weights when it is built; the user gave its code.
        _check_fit(_outline(recipe, *size, str(folder.path)), weights, folder)
    with seeded(0, "overwritten"):
        model = recipe.model(*size)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _misfit(folder, shown(error, 200)) from None
    return model.eval()


def _outline(recipe: Recipe, classes: int, channels: int, where: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a network's weights without allocating them."""
    with torch.device("meta"), seeded(0, "overwritten"):
        model = attempted(
            lambda: recipe.model(classes, channels), f"{where}: the recipe's network cannot be built"
        )
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _check_fit(
    outline: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], folder: RunFolder
) -> None:
    missing, foreign = [*outline.keys() - weights.keys()], [*weights.keys() - outline.keys()]
    if missing or foreign:
        what = (
            f"{shown(sorted(missing)[0])} is missing"
            if missing
            else f"{shown(sorted(foreign)[0])} is unknown"
        )
        raise _misfit(folder, what)
    for key, shape in outline.items():
        if tuple(weights[key].shape) != shape:
            sizes = ("×".join(map(str, each)) or "one" for each in (weights[key].shape, shape))
            raise _misfit(folder, f"{key} is {' where '.join(sizes)} belongs")


def _misfit(folder: RunFolder, reason: str) -> InputError:
    return InputError(f"the weights in {printable(folder.path)} do not fit its recipe: {reason}")


def plain_environment(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return an environment whose values are plain ones, and of which only `data` and lists hold others."""
    for key, value in values.items():
        inner = value.values() if key == "data" and isinstance(value, dict) else [value]
        for each in inner:
            items = each if isinstance(each, list) else [each]
            if any(isinstance(item, (dict, list)) for item in items):
                raise InputError(f"{where}: {shown(key)} is {shown(each)}, where a plain value belongs")
    return values
