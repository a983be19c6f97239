"""Grad-CAM for two classes of each image: ours against captum's, seconds in one run.

    python benchmarks/gradcam_speed.py [--record]

The course's network at full width, random weights and random images, at the endpoint that is the default,
8×8. Both get the same normalised images in batches of the same size, fp32, and give their maps on the CPU:
captum by `LayerGradCam.attribute` once for each class, ours by one `gradcam_pair`. They run in turn
(A B A B …) and the medians are compared. The maps must agree to 1e-5, or there is no result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata

import torch
from captum.attr import LayerGradCam
from rows import add_row
from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.insight.gradcam import default_endpoint, gradcam_pair
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded, stream
from firstlight.models.custom_resnet import CustomResNet

CLASSES = 10
AGREEMENT = 1e-5

Maps = tuple[Tensor, Tensor]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--endpoint", help="by default the one that Grad-CAM takes, 8×8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", action="store_true", help="append a row to results.csv")
    arguments = parser.parse_args(words)
    count, batch_size = arguments.images, arguments.batch_size

    machine = choose(arguments.device, "fp32")
    with seeded(0, "weights"):
        model = CustomResNet(CLASSES, width=arguments.width).to(machine.device).eval()
    draw = stream(0, "images")
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    images = normalise(pixels.to(machine.device), (0.5,) * 3, (0.25,) * 3)
    first = torch.randint(CLASSES, (count,), generator=draw)
    second = (first + torch.randint(1, CLASSES, (count,), generator=draw)) % CLASSES  # never the same class
    endpoint = arguments.endpoint or default_endpoint(model, images[:1])

    def ours() -> Maps:
        pair = gradcam_pair(model, images, first, second, endpoint, batch_size=batch_size)
        return pair[0].maps, pair[1].maps

    theirs = LayerGradCam(model, model.endpoints()[endpoint])

    def captum_of(targets: Tensor) -> Tensor:
        parts = zip(images.split(batch_size), targets.to(machine.device).split(batch_size), strict=True)
        found = [theirs.attribute(some, wanted, relu_attributions=True).detach() for some, wanted in parts]
        return torch.cat(found)[:, 0].cpu()

    def captum() -> Maps:
        return captum_of(first), captum_of(second)

    sides: dict[str, Callable[[], Maps]] = {"ours": ours, "captum": captum}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    maps: dict[str, Maps] = {}
    for number in range(arguments.rounds + 1):
        for name, side in sides.items():
            machine.synchronise()
            start = time.perf_counter()
            maps[name] = side()
            machine.synchronise()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    pairs = zip(maps["ours"], maps["captum"], strict=True)
    apart = max(float((mine - other).abs().max()) for mine, other in pairs)
    if apart > AGREEMENT:
        sys.exit(f"the maps differ by {apart:.1e}")

    fast, slow = (statistics.median(seconds[name]) for name in ("ours", "captum"))
    version = metadata.version("captum")
    print(
        f"on {machine.hardware}, {machine.device.type}, {machine.threads} threads, torch {torch.__version__}"
    )
    for name, taken in seconds.items():
        each = ", ".join(f"{one:.2f}" for one in taken)
        print(f"{name:7} {statistics.median(taken):7.2f} s   (each round: {each})")
    print(
        f"{slow / fast:.2f} times as fast as captum {version}, for two classes of {count:,} images at "
        f"{endpoint}, in batches of {batch_size}; the maps differ by {apart:.0e} at most"
    )
    if arguments.record:
        add_row(
            {
                "script": "benchmarks/gradcam_speed.py",
                "date": datetime.now(UTC).date().isoformat(),
                "hardware": machine.hardware,
                "torch": torch.__version__,
                "device": machine.device.type,
                "precision": machine.precision,
                "threads": machine.threads,
                "images_per_second": round(count / fast, 1),
                "baseline": f"captum {version}, LayerGradCam, called once for each class",
                "baseline_images_per_second": round(count / slow, 1),
                "ratio": round(slow / fast, 3),
                "endpoint": endpoint,
                "note": f"Grad-CAM for two classes of {count} images, width {arguments.width}, "
                f"batches of {batch_size}",
            }
        )


if __name__ == "__main__":
    main()
