"""Where a training step's time goes, before and after, and the limits that the chip sets.

    python -m benchmarks.speed.budget [--path avx2] [--rounds 3] [--batch-size 512] [--record] [--draw]

Three loops on the same batches, each in a process of its own, in turn: *stock* as in reference.py; *memory
kept*, the same operations with the tuned allocator; *firstlight*, with the compiled operations too. The parts
of a step are torch's own profile of it; what tuning the allocator saves is the difference between the first
two. Paths: bf16, fp16 (where the chip has AVX-512 FP16), and fp32 limited to AVX2 or AVX-512 as in
older_chips.py. Beside them stand the limits of limits.py and, for 16 bits, the *floor*: every convolution
alone, by the faster of torch and Firstlight.

`--record` adds a row for each path. For the machine's own path it also keeps budget.json, and draws
docs/pictures/budget.png from it; `--draw` only draws.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, profiler
from torch.nn import functional as F

from benchmarks.measure import BENCHMARKS, in_own_process, parser, record, seconds_in_turn
from benchmarks.speed.limits import limits
from benchmarks.speed.older_chips import LIMITS
from benchmarks.speed.reference import BATCH, assignment, firstlight, stock
from firstlight.figures import style
from firstlight.machine.kernels import convolution
from firstlight.machine.machine import choose
from firstlight.machine.streams import stream
from firstlight.models.blocks import ConvBlock
from firstlight.models.custom_resnet import CustomResNet

LOOPS = {
    "stock": "PyTorch's stock loop",
    "memory kept": "stock, memory kept",
    "firstlight": "Firstlight",
}
PLAIN = {"FIRSTLIGHT_KERNELS": "plain"}
OWN = ""
PATHS: dict[str, tuple[str, dict[str, str]]] = {
    # precision, and variables of the environment of all loops
    OWN: ("bf16", {}),
    "bf16": ("bf16", {"FIRSTLIGHT_KERNELS": "bf16"}),
    **{isa: ("fp32", {**limit, "FIRSTLIGHT_KERNELS": isa}) for isa, limit in LIMITS.items()},
}
"""By name; the first is the machine's own, bf16 or fp16."""
RESULT = Path(__file__).with_suffix(".json")
PICTURE = BENCHMARKS.parent / "docs" / "pictures" / "budget.png"
PARTS = {
    "convolution, forward": ("aten::mkldnn_convolution", "_Convolve"),
    "convolution, gradients": ("aten::convolution_backward", "_ConvolveBackward"),
    "batch norm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "ReLU": ("aten::clamp_min", "aten::relu", "aten::threshold_backward"),
    "batch norm and ReLU in one": ("_NormActivate", "_NormActivateBackward"),
    "max-pool": ("aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::clone"),
}
OPTIMIZER, REST = "optimizer", "the rest"
PASSES = ("forward", "images' gradient", "filters' gradient")


def profile(loop: str, precision: str, batch_size: int) -> dict[str, Any]:
    """Return the seconds of a step in this process, and of its parts."""
    step, _ = (stock if loop == "stock" else firstlight)(precision, assignment, batch_size)
    step_seconds = statistics.median(seconds_in_turn({loop: step}, 5, warm_up=3)[loop])
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as profiled:
        step()
    parts = dict.fromkeys([*PARTS, OPTIMIZER, REST], 0.0)
    part_of = {operation: part for part, operations in PARTS.items() for operation in operations}
    for event in profiled.key_averages():
        if event.key.startswith("Optimizer.step"):
            parts[OPTIMIZER] += event.cpu_time_total
        else:
            parts[part_of.get(event.key, REST)] += event.self_cpu_time_total
    # The optimizer's own operations were counted once by name and once by its range.
    parts[REST] = max(0.0, parts[REST] - parts[OPTIMIZER])
    scale = step_seconds / sum(parts.values())
    return {"step": step_seconds, "parts": {name: part * scale for name, part in parts.items()}}


def convolutions(repeats: int, batch_size: int) -> list[dict[str, Any]]:
    """Time each convolution of the network alone, as torch does it and as compiled; milliseconds."""
    choose("cpu", "bf16")
    model = CustomResNet(10).to(memory_format=torch.channels_last)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ConvBlock)}
    sides: dict[str, int] = {}
    for name, block in blocks.items():
        hook = partial(lambda name, _, inputs: sides.update({name: inputs[0].shape[-1]}), name)
        block.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))

    rows = []
    for name, block in blocks.items():
        conv, side = block.conv, sides[name]
        shape = (batch_size, conv.in_channels, side, side)
        images = torch.randn(shape, generator=stream(0, name)).bfloat16()
        images = images.contiguous(memory_format=torch.channels_last)
        weight = conv.weight.detach()
        library = passes(partial(F.conv2d, padding=1), images, weight.bfloat16(), repeats)
        compiled: list[float | None] = [None] * 3
        if convolution.serves(conv, images):
            compiled = passes(partial(convolution.convolve, pool=block.pooled), images, weight, repeats)
        if conv.in_channels == 3:
            library[1] = 0.0  # nobody needs the gradient of the images themselves
        products = batch_size * side * side * 9 * conv.in_channels * conv.out_channels
        title = f"{name}: {conv.in_channels}→{conv.out_channels} at {side}×{side}"
        rows.append({"name": title, "gflop": 2e-9 * products, "torch": library, "compiled": compiled})
    return rows


def passes(convolve: Callable[..., Any], images: Tensor, weight: Tensor, repeats: int) -> list[Any]:
    """Return the milliseconds of a convolution's PASSES.

    Of several times the shortest counts: other work on the machine only ever adds, and a floor that is too
    high would flatter the step above it.
    """

    def forward() -> None:
        with torch.no_grad():
            convolve(images, weight)

    ways: dict[str, Callable[[], object]] = {PASSES[0]: forward}
    # One graph for each gradient, so that none computes both.
    for index, name in enumerate(PASSES[1:]):
        inputs = [images.clone(), weight.clone()]
        leaf = inputs[index].requires_grad_()
        output = convolve(*inputs)
        direction = output.detach().clone()
        ways[name] = partial(torch.autograd.grad, output, leaf, direction, retain_graph=True)
    return [1e3 * min(times) for times in seconds_in_turn(ways, repeats).values()]


def shortest(row: dict[str, Any], index: int) -> float:
    """Return the milliseconds of a pass, done in the faster of the two ways."""
    return min(way for way in (row["torch"][index], row["compiled"][index]) if way is not None)


def measure(path: str, rounds: int, batch_size: int) -> dict[str, Any]:
    precision, variables = PATHS[path]
    work = (precision, batch_size)
    kernels: dict[str, dict[str, str]] = {loop: {} if loop == "firstlight" else PLAIN for loop in LOOPS}
    results = [
        {loop: in_own_process(profile, loop, *work, **{**variables, **kernels[loop]}) for loop in LOOPS}
        for _ in range(rounds)
    ]
    # The round whose step is the median one speaks for each loop, so that its parts belong together.
    loops = {
        loop: sorted((result[loop] for result in results), key=lambda one: one["step"])[rounds // 2]
        for loop in LOOPS
    }
    budget = {"hardware": choose("cpu", precision).hardware, "batch_size": batch_size, "loops": loops}
    budget["limits"], budget["kernels"] = in_own_process(limits, *work, **variables)
    if path == OWN:
        rows = in_own_process(convolutions, 5 * rounds, batch_size)
        budget["floor"] = sum(shortest(row, index) for row in rows for index in range(3)) / 1e3
        budget["alone"] = rows
    return budget


def row(path: str, budget: dict[str, Any]) -> dict[str, Any]:
    """Return what of a budget goes into a row: seconds of a step and its parts, limits, and rates."""
    parts = budget["loops"]["firstlight"]["parts"]
    convolving = sum(parts[name] for name in PARTS if name.startswith("convolution"))
    norms = sum(parts[name] for name in ("batch norm", "ReLU", "batch norm and ReLU in one"))
    step = budget["loops"]["firstlight"]["step"]
    seconds = {"step": step, "convolutions": convolving, "norms": norms, "rest": step - convolving - norms}
    for loop in ("stock", "memory kept"):
        seconds[loop.replace(" ", "_")] = budget["loops"][loop]["step"]
    seconds |= {name: value for name, value in budget["limits"].items() if name.startswith("limit")}
    rates = {name: round(value, 1) for name, value in budget["limits"].items() if name not in seconds}
    return {
        "kernels": path or "the machine's own",
        "batch_size": budget["batch_size"],
        **{f"{name}_seconds": round(value, 4) for name, value in seconds.items()},
        **rates,
        "note": budget["kernels"],
    }


COLOURS = {
    "convolutions, forward": (style.BLUE, ("convolution, forward",)),
    "convolutions, gradients": ("#7fb8d8", ("convolution, gradients",)),
    "batch norm and ReLU": (style.VERMILLION, ("batch norm", "ReLU", "batch norm and ReLU in one")),
    "max-pool": ("#eeb07f", ("max-pool",)),
    "all else": (style.FAINT, ("copies and casts", OPTIMIZER, REST)),
}


@style.in_one_look
def draw(budget: dict[str, Any]) -> style.Sheet:
    """Draw each loop's step as a bar of its parts, and the floor as a line through all."""
    floor, left, top, down = budget["floor"], 1.75, 0.92, 1.7
    sheet = style.Sheet(8.4, 3.5)
    sheet.write(0.2, 0.2, "Where the time of a training step goes", size=style.TITLE, weight="bold")
    x = 0.2
    for words, (colour, _) in COLOURS.items():
        swatch = sheet.area(x, 0.59, 0.13, 0.13)
        swatch.set(facecolor=colour, xticks=[], yticks=[])
        swatch.spines[:].set_visible(False)
        sheet.write(x + 0.2, 0.59, words, size=style.SMALL, color=style.MUTED)
        x += style.width_of(words, style.SMALL) + 0.42
    axes = sheet.area(left, top, 6.4, down)
    for row, loop in enumerate(budget["loops"].values()):
        start = 0.0
        for colour, parts in COLOURS.values():
            seconds = sum(loop["parts"][part] for part in parts)
            axes.barh(row, seconds, 0.62, left=start, color=colour)
            start += seconds
        axes.text(start, row, f"  {loop['step']:.2f} s", va="center", weight="bold")
    axes.axvline(floor, color=style.INK, linestyle=":", linewidth=1.2)
    axes.set(xlim=(0, 1.1 * max(loop["step"] for loop in budget["loops"].values())), ylim=(2.5, -0.5))
    axes.set_yticks(range(len(LOOPS)), [LOOPS[loop] for loop in budget["loops"]], color=style.INK)
    axes.grid(False)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_formatter("{x:g} s")
    lines = [
        f"A step of {budget.get('batch_size', BATCH)} images on {budget['hardware']}.",
        f"Dotted: the floor, {floor:.2f} s: every convolution alone, by the faster of torch and Firstlight.",
    ]
    sheet.write(0.2, top + down + 0.45, "\n".join(lines), size=style.SMALL, color=style.MUTED)
    return sheet


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--path", choices=PATHS, action="append", help="by default the machine's own")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--batch-size", type=int, default=BATCH)
    options.add_argument("--draw", action="store_true", help="only draw the picture, from budget.json")
    arguments = options.parse_args()
    if arguments.draw:
        PICTURE.write_bytes(style.to_png(draw(json.loads(RESULT.read_text(encoding="utf-8")))))
        return
    for path in arguments.path or [OWN]:
        budget = measure(path, arguments.rounds, arguments.batch_size)
        record(__file__, choose("cpu", PATHS[path][0]), keep=arguments.record, **row(path, budget))
        if path == OWN:
            text = json.dumps(budget, indent=1) + "\n"
            print(text)
            if arguments.record:
                RESULT.write_text(text, encoding="utf-8")
                PICTURE.write_bytes(style.to_png(draw(budget)))


if __name__ == "__main__":
    main()
