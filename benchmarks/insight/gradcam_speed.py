"""Grad-CAM for two classes of each image: ours against captum's, seconds in one run.

    python -m benchmarks.insight.gradcam_speed [--images 1000] [--rounds 5] [--record]

The course's network at full width, random weights and random images, at the endpoint that is the default,
8×8. Both get the same normalised images in batches of the same size, fp32, and give their maps on the CPU:
captum by `LayerGradCam.attribute` once for each class, ours by one `gradcam_pair`. They run in turn
(A B A B …) and the medians are compared. The maps must agree to 1e-5, or there is no result.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from benchmarks.measure import parser, random_images, record, seconds_in_turn
from firstlight.data.augment import normalise
from firstlight.insight.gradcam import default_endpoint, gradcam_pair
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded, stream
from firstlight.models.custom_resnet import CustomResNet

CLASSES = 10
AGREEMENT = 1e-5


def main(words: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=250)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--endpoint", help="by default the one that Grad-CAM takes, 8×8")
    options.add_argument("--device", default="auto")
    arguments = options.parse_args(words)
    count, batch_size = arguments.images, arguments.batch_size

    machine, raw = choose(arguments.device, "fp32"), random_images(count)
    with seeded(0, "weights"):
        model = CustomResNet(CLASSES, width=arguments.width).to(machine.device).eval()
    images = normalise(raw.images.to(machine.device), raw.mean, raw.std)
    draw = stream(0, "classes")
    first = torch.randint(CLASSES, (count,), generator=draw)
    second = (first + torch.randint(1, CLASSES, (count,), generator=draw)) % CLASSES  # never the same class
    endpoint = arguments.endpoint or default_endpoint(model, images[:1])
    layer = LayerGradCam(model, model.endpoints()[endpoint])
    maps: dict[str, tuple[Tensor, Tensor]] = {}

    def ours() -> None:
        pair = gradcam_pair(model, images, first, second, endpoint, batch_size=batch_size)
        maps["ours"] = pair[0].maps, pair[1].maps

    def captum_maps(targets: Tensor) -> Tensor:
        batches = zip(images.split(batch_size), targets.to(machine.device).split(batch_size), strict=True)
        parts = [
            layer.attribute(batch, classes, relu_attributions=True).detach() for batch, classes in batches
        ]
        return torch.cat(parts)[:, 0].cpu()

    def captum() -> None:
        maps["captum"] = captum_maps(first), captum_maps(second)

    ways: dict[str, Callable[[], None]] = {"ours": ours, "captum": captum}
    seconds = seconds_in_turn(ways, arguments.rounds, wait=machine.synchronise)
    pairs = zip(maps["ours"], maps["captum"], strict=True)
    difference = max(float((one - other).abs().max()) for one, other in pairs)
    if difference > AGREEMENT:
        sys.exit(f"the maps differ by {difference:.1e}")

    fast, slow = (statistics.median(seconds[name]) for name in ways)
    version = metadata.version("captum")
    print(
        f"on {machine.hardware}, {machine.device.type}, {machine.threads} threads, torch {torch.__version__}"
    )
    for name, times in seconds.items():
        each = ", ".join(f"{one:.2f}" for one in times)
        print(f"{name:7} {statistics.median(times):7.2f} s   (each round: {each})")
    print(
        f"{slow / fast:.2f} times as fast as captum {version}, for two classes of {count:,} images at "
        f"{endpoint}, in batches of {batch_size}; the maps differ by {difference:.0e} at most"
    )
    if arguments.record:
        record(
            __file__,
            machine,
            images_per_second=round(count / fast, 1),
            baseline=f"captum {version}, LayerGradCam, called once for each class",
            baseline_images_per_second=round(count / slow, 1),
            ratio=round(slow / fast, 3),
            endpoint=endpoint,
            note=f"Grad-CAM for two classes of {count} images, width {arguments.width}, "
            f"batches of {batch_size}",
        )


if __name__ == "__main__":
    main()
