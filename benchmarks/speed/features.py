"""Speed of the frozen features: ours, and the reference package's own code, in turn in one run.

    python -m benchmarks.speed.features --record     # in an environment with efficientnet_lite_pytorch

The package efficientnet-lite-pytorch is installed with --no-deps, beside the extra `transfer`. Both read the
same published weights and the same batches of 224×224 images; features are the means of the last grid.
"""

from __future__ import annotations

import copy
import statistics

import torch

from benchmarks.measure import parser, record, seconds_in_turn
from firstlight.machine.machine import choose
from firstlight.machine.streams import stream
from firstlight.models.efficientnet_lite import EfficientNetLite, weights_file
from firstlight.models.weights import read_weights

SIDE, ROUNDS = 224, 5
IMAGES = 64


def main() -> None:
    """Time both, and say how many images a second each takes."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=IMAGES)
    chosen = options.parse_args()
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(read_weights(weights_file()))
    ours = EfficientNetLite(1000, min_side=0)
    ours.take_weights()
    machine = choose("cpu", "auto")
    fast, plain = ours.folded(machine.dtype), ours.folded()
    low = copy.deepcopy(reference).to(machine.dtype, memory_format=torch.channels_last)
    images = torch.randn(chosen.images, 3, SIDE, SIDE, generator=stream(0, "features"))
    batches = [part.contiguous(memory_format=torch.channels_last) for part in images.split(32)]
    with torch.inference_mode():
        ways = {
            "reference": lambda: [reference.extract_features(part).mean((2, 3)) for part in images.split(32)],
            f"reference, {machine.precision}, channels-last": lambda: [
                low.extract_features(part.to(machine.dtype)).mean((2, 3)) for part in batches
            ],
            "folded, fp32": lambda: [plain.features_of_view(part) for part in batches],
            f"folded, {machine.precision}": lambda: [fast.features_of_view(part) for part in batches],
        }
        seconds = seconds_in_turn(ways, ROUNDS)
    speeds = {name: chosen.images / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        values = {"way": name, "images_per_second": speed, "ratio": speed / speeds["reference"]}
        record(__file__, machine, keep=chosen.record, side=SIDE, **values)


if __name__ == "__main__":
    main()
