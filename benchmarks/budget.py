"""Where a training step's time goes, before and after, and the floor under it: its convolutions, each alone.

    python benchmarks/budget.py [--rounds 3] [--record]

Three loops on the same batches, each in a process of its own, in turn: *stock* as in reference.py; *memory
kept*, the same operations with the tuned allocator; *firstlight*, with the compiled operations too. The parts
of a step are torch's own profile of it; what tuning the allocator saves is the difference between the first
two. `--record` writes budget.json beside this script and draws docs/pictures/budget.png from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference import BATCH, firstlight, stock

LOOPS = ("stock", "memory kept", "firstlight")
RESULT = Path(__file__).with_name("budget.json")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "budget.png"
PARTS = {
    "convolution, forward": ("aten::mkldnn_convolution", "_Convolve"),
    "convolution, gradients": ("aten::convolution_backward", "_ConvolveBackward"),
    "batch norm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "ReLU": ("aten::clamp_min", "aten::relu", "aten::threshold_backward"),
    "batch norm and ReLU in one": ("_NormActivate", "_NormActivateBackward"),
    "max-pool": ("aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::clone"),
}
REST = "the rest"
PASSES = ("forward", "images' gradient", "filters' gradient")


def profile(loop: str) -> dict[str, Any]:
    """Return the seconds of a step in this process, and of its parts."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    step, _ = (stock if loop == "stock" else firstlight)()
    for _ in range(3):
        step()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    parts = dict.fromkeys([*PARTS, "optimizer", REST], 0.0)
    of = {name: part for part, names in PARTS.items() for name in names}
    for event in recorded.key_averages():
        if event.key.startswith("Optimizer.step"):
            parts["optimizer"] += event.cpu_time_total / 1e6
        else:
            parts[of.get(event.key, REST)] += event.self_cpu_time_total / 1e6
    # The optimizer's own operations were counted once by name and once by its range.
    parts[REST] = max(0.0, parts[REST] - parts["optimizer"])
    whole = sum(parts.values())
    step_seconds = statistics.median(seconds)
    return {
        "step": step_seconds,
        "parts": {name: part / whole * step_seconds for name, part in parts.items()},
    }


def convolutions(repeats: int = 5) -> list[dict[str, Any]]:
    """Time each convolution of the network alone, as torch does it and as compiled; milliseconds.

    Of several times the shortest counts: other work on the machine only ever adds, and a floor that is too
    high would flatter the step above it.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from firstlight.machine.kernels import convolution
    from firstlight.machine.machine import choose
    from firstlight.machine.streams import stream
    from firstlight.models.blocks import ConvBlock
    from firstlight.models.custom_resnet import CustomResNet

    choose("cpu", "bf16")
    model = CustomResNet(10).to(memory_format=torch.channels_last)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ConvBlock)}
    sides: dict[str, int] = {}
    for name, block in blocks.items():
        block.register_forward_pre_hook(
            lambda _, given, name=name: sides.__setitem__(name, given[0].shape[-1])
        )
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))

    def shortest(work: Callable[[], object]) -> float:
        work()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds) * 1e3

    rows = []
    for name, block in blocks.items():
        conv: nn.Conv2d = block.conv
        side = sides[name]
        draw = stream(0, name)
        shape = (BATCH, conv.in_channels, side, side)
        images = torch.randn(shape, generator=draw).bfloat16().contiguous(memory_format=torch.channels_last)
        weight = conv.weight.detach()
        half = weight.bfloat16()
        whole = torch.randn(BATCH, conv.out_channels, side, side, generator=draw).bfloat16()
        whole = whole.contiguous(memory_format=torch.channels_last)

        def gradient(of_images: bool, of_weight: bool, whole=whole, images=images, half=half) -> object:
            ones = [1, 1]
            mask = [of_images, of_weight, False]
            return torch.ops.aten.convolution_backward(
                whole, images, half, None, ones, ones, ones, False, [0, 0], 1, mask
            )

        library = [shortest(lambda images=images, half=half: F.conv2d(images, half, padding=1))]
        library.append(
            shortest(lambda gradient=gradient: gradient(True, False)) if conv.in_channels > 3 else 0.0
        )
        library.append(shortest(lambda gradient=gradient: gradient(False, True)))
        compiled: list[float | None] = [None] * 3
        if convolution.serves(conv, images):
            with torch.no_grad():
                compiled[0] = shortest(
                    lambda images=images, weight=weight, block=block: convolution.convolve(
                        images, weight, pool=block.pooled
                    )
                )
            # One graph for each gradient, so that none computes both.
            for number, wanted in ((1, "images"), (2, "filters")):
                given = images.clone().requires_grad_(wanted == "images")
                filters = weight.clone().requires_grad_(wanted == "filters")
                found = convolution.convolve(given, filters, pool=block.pooled)
                direction = torch.randn(found.shape, generator=draw).bfloat16()
                direction = direction.contiguous(memory_format=torch.channels_last)
                leaf = given if wanted == "images" else filters
                compiled[number] = shortest(
                    lambda found=found, leaf=leaf, direction=direction: torch.autograd.grad(
                        found, leaf, direction, retain_graph=True
                    )
                )
        products = BATCH * side * side * 9 * conv.in_channels * conv.out_channels
        rows.append(
            {
                "name": f"{name}: {conv.in_channels}→{conv.out_channels} at {side}×{side}",
                "gflop": 2e-9 * products,
                "torch": library,
                "compiled": compiled,
            }
        )
    return rows


def in_own_process(loop: str) -> Any:
    plain = {} if loop == "firstlight" or loop == "convolutions" else {"FIRSTLIGHT_KERNELS": "plain"}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", loop],
        env={**os.environ, **plain},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(
        next(line for line in reversed(done.stdout.splitlines()) if line.startswith(("{", "[")))
    )


def best(row: dict[str, Any], number: int) -> float:
    """The milliseconds of a pass, done in the faster of the two ways."""
    ways = [way for way in (row["torch"][number], row["compiled"][number]) if way is not None]
    return min(ways)


def draw(budget: dict[str, Any], path: Path) -> None:
    """Draw the three loops' parts as bars, and the floor as a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    steps = {loop: found["step"] for loop, found in budget["loops"].items()}
    bars = {loop: dict(found["parts"]) for loop, found in budget["loops"].items()}
    names = [
        name for name in bars["stock"] if any(part[name] > 0.004 * steps["stock"] for part in bars.values())
    ]
    for loop, parts in bars.items():
        bars[loop] = {name: part for name, part in parts.items() if name in names}
        bars[loop][REST] = steps[loop] - sum(part for name, part in bars[loop].items() if name != REST)
    colours = pyplot.get_cmap("tab20").colors
    figure, axes = pyplot.subplots(figsize=(9, 3.4), layout="constrained")
    for place, loop in enumerate(bars):
        left = 0.0
        for number, (name, part) in enumerate(bars[loop].items()):
            axes.barh(place, part, left=left, color=colours[number], label=name if place == 0 else None)
            left += part
        axes.text(left, place, f" {left:.2f} s", va="center")
    axes.axvline(budget["floor"], color="black", linestyle=":", linewidth=1)
    axes.text(
        budget["floor"], len(bars) - 0.45, "floor: the convolutions, each alone ", ha="right", fontsize=8
    )
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.3, -0.6)
    axes.set_xlim(0, 1.12 * max(steps.values()))
    axes.set_xlabel(f"seconds of a training step of {BATCH} images, {budget['hardware']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write budget.json and its picture")
    parser.add_argument("--draw", action="store_true", help="only draw the picture, from budget.json")
    parser.add_argument("--measure", choices=[*LOOPS, "convolutions"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured = convolutions() if arguments.measure == "convolutions" else profile(arguments.measure)
        print(json.dumps(measured))
        return
    if arguments.draw:
        draw(json.loads(RESULT.read_text(encoding="utf-8")), PICTURE)
        return

    from firstlight.machine.machine import choose

    rounds = [{loop: in_own_process(loop) for loop in LOOPS} for _ in range(arguments.rounds)]
    # The round whose step is the median one speaks for each loop, so that its parts belong together.
    loops = {
        loop: sorted((each[loop] for each in rounds), key=lambda found: found["step"])[len(rounds) // 2]
        for loop in LOOPS
    }
    alone = [in_own_process("convolutions") for _ in range(arguments.rounds)]
    rows = alone[0]
    for number, row in enumerate(rows):
        for way in ("torch", "compiled"):
            values = [[each[number][way][i] for each in alone] for i in range(3)]
            row[way] = [None if value[0] is None else min(value) for value in values]
    floor = sum(best(row, number) for row in rows for number in range(3)) / 1e3
    budget = {
        "hardware": choose("cpu", "bf16").hardware,
        "floor": floor,
        "loops": loops,
        "alone": rows,
    }

    print(f"on {budget['hardware']}; seconds of a step, medians of {arguments.rounds}\n")
    print(f"| | {' | '.join(LOOPS)} |\n|---|{'---|' * len(LOOPS)}")
    for part in loops["stock"]["parts"]:
        cells = [format(found["parts"][part], ".3f") for found in loops.values()]
        print(f"| {part} | {' | '.join(cells)} |")
    print("| **a step** | " + " | ".join(f"**{found['step']:.3f}**" for found in loops.values()) + " |")
    print(
        "\nmilliseconds of each convolution alone: torch / compiled\n\n"
        f"| | {' | '.join(PASSES)} |\n|---|---|---|---|"
    )
    for row in rows:
        cells = [
            f"{one:.1f} / {'–' if two is None else f'{two:.1f}'}"
            for one, two in zip(row["torch"], row["compiled"], strict=True)
        ]
        print(f"| {row['name']} | {' | '.join(cells)} |")
    print(
        f"\nfloor, each the better way: {floor:.3f} s; "
        f"a step is {loops['firstlight']['step'] / floor:.2f} floors"
    )
    if arguments.record:
        RESULT.write_text(json.dumps(budget, indent=1) + "\n", encoding="utf-8")
        draw(budget, PICTURE)


if __name__ == "__main__":
    main()
