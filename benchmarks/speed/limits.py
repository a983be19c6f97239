"""The least time that a training step of the assignment can take on this chip, from what the chip can do.

Two limits for each operation: its products at the rate of the registers, and its bytes at the rate of memory,
reading each input and writing each result once. An operation takes at least the longer of the two.
- A convolution: the products that its kernel makes, 2.25 times fewer than a direct one by Winograd tiles of
  two outputs a side and 4 times fewer by tiles of four, and all of them where torch convolves; three times a
  step, of the images themselves twice.
- A norm with its activation: it reads its input twice and writes once, and backwards reads two tensors twice
  and writes one.
What the limits leave out: transforms, caches that are missed, the optimizer, the augmentation.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.speed import roofline
from firstlight.machine.kernels import convolution
from firstlight.machine.kernels.library import load
from firstlight.machine.machine import choose
from firstlight.models.blocks import ConvBlock
from firstlight.models.custom_resnet import CustomResNet

IMAGE_CHANNELS = 3
"""Of the images themselves nobody needs the gradient."""


def limits(precision: str, batch_size: int) -> tuple[dict[str, float], str]:
    """Return the limits in seconds and the rates behind them, and which kernels are in use.

    `limit_products` and `limit_memory` add up one kind alone, `limit` the longer of the two for each
    operation.
    """
    machine = choose("cpu", precision)
    rates = asdict(roofline.measure(machine.dtype))
    size, compute, memory, both = machine.dtype.itemsize, 0.0, 0.0, 0.0
    for block, inputs, outputs in blocks():
        read, written = (batch_size * values * size for values in (inputs.numel(), outputs.numel()))
        products = direct(block, inputs) * batch_size
        forward = gradient = products
        if convolution.serves(block.conv, inputs, pool=block.pooled, dtype=machine.dtype):
            kernels = load(machine.dtype)
            tile = kernels.variant.tile
            forward = products / fewer(tile)
            gradient = products / fewer(convolution.large_tile(kernels, *inputs.shape[2:]) or tile)
        gradients = 1 if block.conv.in_channels == IMAGE_CHANNELS else 2
        operations = [(2 * forward, read + written), *[(2 * gradient, read + written)] * gradients]
        operations += [(0.0, 3 * written), (0.0, 5 * written)]
        for flop, moved in operations:
            seconds = flop / rates["registers"] / 1e9, moved / rates["memory"] / 1e9
            compute, memory, both = compute + seconds[0], memory + seconds[1], both + max(seconds)
    found = {"limit_products": compute, "limit_memory": memory, "limit": both}
    return {**found, **rates}, load(machine.dtype).words


def fewer(tile: int) -> float:
    """Return how many products of a direct 3×3 convolution a tile makes with one."""
    return (3 * tile) ** 2 / (tile + 2) ** 2


def blocks() -> list[tuple[ConvBlock, torch.Tensor, torch.Tensor]]:
    """Return the blocks of the assignment's network, each with one image that enters and what leaves it."""
    model = CustomResNet(10)
    seen: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    for module in model.modules():
        if isinstance(module, ConvBlock):
            module.register_forward_hook(partial(_note, seen))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return seen


def _note(seen: list[Any], module: nn.Module, inputs: tuple[torch.Tensor], outputs: torch.Tensor) -> None:
    seen.append((module, inputs[0], outputs))


def direct(block: ConvBlock, images: torch.Tensor) -> float:
    """Return the products that a direct convolution of these images makes."""
    conv, (_, _, height, width) = block.conv, images.shape
    return 9.0 * conv.in_channels * conv.out_channels * height * width
