"""The pointing game: does a map's strongest place lie on the object? (Zhang et al. 2018, arXiv 1608.00507)

    python -m benchmarks.insight.pointing RUN [--methods gradcam layercam] [--record]

RUN is a finished run on `shapes`, whose masks say where the object is. Of the test images that its network
gets right, a map of the true class, smoothed as the pictures are, hits where its maximum lies on the object
(section 4.1, without a tolerance; the mean over classes of the share of hits). Where several pixels share
the maximum, their share on the object counts, so that a map without evidence scores as chance.

It is compared with always pointing at the centre of the image; with chance, the mean share of an image that
the object covers; and with the same architecture under random weights, on the same images and classes: what
is left there is not what the network has learned (Adebayo et al. 2018, arXiv 1810.03292). Objects of
`shapes` often lie across the centre, so the images where none does are also counted apart; and a run with
smaller objects (`firstlight train shapes.demo --set object_size=50`) has a centre that knows little.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import parser, record
from firstlight.data.augment import normalise
from firstlight.data.images import ImageSet
from firstlight.data.shapes import Shapes
from firstlight.insight.gradcam import METHODS, gradcam
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.run import Run

ENDPOINTS = ("layer1", "layer2", "layer3")


Figures = dict[str, float | None]
"""Columns of a row, as fractions; off_centre is None where every object covers the centre."""


def hits(maps: Tensor, masks: Tensor) -> Tensor:
    """Return for each of N maps the share of its maximum, once smoothed, that lies on the N×H×W mask."""
    smooth = F.interpolate(maps[:, None].double(), size=masks.shape[1:], mode="bilinear", align_corners=False)
    flat = smooth.flatten(1)
    strongest = flat == flat.amax(1, keepdim=True)
    return (strongest & masks.flatten(1)).sum(1) / strongest.sum(1)


def centre_hits(masks: Tensor) -> Tensor:
    """Return for each mask the share of the image's middle, one pixel or four, that it covers."""
    height, width = masks.shape[1:]
    rows, columns = (slice((side - 1) // 2, side // 2 + 1) for side in (height, width))
    return masks[:, rows, columns].double().mean(dim=(1, 2))


def over_classes(values: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean over the classes that occur of their means, and its standard error."""
    each = [values[labels == label].double() for label in labels.unique()]
    error = sum(float(of.var(correction=0)) / len(of) for of in each) ** 0.5 / len(each)
    return statistics.mean(float(of.mean()) for of in each), error


def score(
    model: nn.Module, images: Tensor, labels: Tensor, masks: Tensor, endpoint: str, method: str = "gradcam"
) -> tuple[str, Figures]:
    """Play the game with the maps of the true classes of normalised images; return the grid and how it went.

    pointing_error: the standard error of the hits. pointing_empty: the share of maps without evidence.
    """
    heat = gradcam(model, images, labels, endpoint, method=method)
    hit, off = hits(heat.maps, masks), centre_hits(masks) == 0
    mean, error = over_classes(hit, labels)
    return "×".join(map(str, heat.maps.shape[1:])), {
        "pointing": mean,
        "pointing_error": error,
        "pointing_off_centre": over_classes(hit[off], labels[off])[0] if off.any() else None,
        "pointing_empty": float(heat.empty.double().mean()),
    }


def baseline(labels: Tensor, masks: Tensor) -> Figures:
    """Return what needs no map: how often the centre hits, and how much of an image the objects cover."""
    covered, middle = masks.double().mean(dim=(1, 2)), centre_hits(masks)
    off = middle == 0
    return {
        "pointing_centre": over_classes(middle, labels)[0],
        "pointing_chance": over_classes(covered, labels)[0],
        "pointing_off_centre_chance": over_classes(covered[off], labels[off])[0] if off.any() else None,
    }


def rightly_classified(run: Run) -> tuple[Tensor, ImageSet]:
    """Return the test images that the run's network gets right, normalised and as they are."""
    _, test = run.recipe.data.load()
    if test.digest != run.environment["data"]["test_sha256"]:
        sys.exit(f"{run.path} was tested on other images than are drawn today")
    if test.masks is None:
        sys.exit(f"the images of {run.path} have no masks: give a run on shapes")
    chosen = test.subset(torch.nonzero(run.evaluation.predictions == test.labels).flatten())
    if not len(chosen):
        sys.exit(f"the network of {run.path} gets no image right")
    return normalise(chosen.images, test.mean, test.std), chosen


def main(words: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--endpoints", nargs="+", default=ENDPOINTS)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["gradcam"])
    options.add_argument("--random", type=int, default=8, help="how many networks of random weights")
    arguments = options.parse_args(words)

    run = Run.open(arguments.run)
    images, chosen = rightly_classified(run)
    masks, labels = chosen.masks, chosen.labels
    assert masks is not None and isinstance(run.recipe.data, Shapes)
    plain, off_centre = baseline(labels, masks), int((centre_hits(masks) == 0).sum())
    networks = []
    for number in range(arguments.random):
        with seeded(number, "random weights"):
            networks.append(run.recipe.model(len(chosen.classes), chosen.shape[0]))
    for method, endpoint in itertools.product(arguments.methods, arguments.endpoints):
        grid, figures = score(run.model, images, labels, masks, endpoint, method)
        random = [score(network, images, labels, masks, endpoint, method)[1] for network in networks]
        every = [float(one["pointing"] or 0) for one in random]
        off = [value for one in random if (value := one["pointing_off_centre"]) is not None]
        figures |= {
            "pointing_random": statistics.mean(every),
            "pointing_random_sd": statistics.stdev(every) if len(every) > 1 else None,
            "pointing_off_centre_random": statistics.mean(off) if off else None,
        }
        record(
            __file__,
            choose("cpu", "fp32"),
            keep=arguments.record,
            recipe=run.recipe.name,
            seed=run.recipe.seed,
            epochs=run.recipe.epochs,
            peak_lr=run.summary.peak_lr,
            min_lr=run.summary.min_lr,
            note=f"pointing game on {len(labels)} test images classified rightly, "
            f"{off_centre} of them off centre; {arguments.random} random networks",
            test_images=len(run.evaluation.labels),
            object_size=run.recipe.data.object_size,
            method=method,
            endpoint=endpoint,
            grid=grid,
            **{name: None if value is None else round(value, 4) for name, value in (plain | figures).items()},
        )


if __name__ == "__main__":
    main()
