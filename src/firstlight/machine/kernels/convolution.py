"""3×3 convolutions, with or without a 2×2 max-pool behind them, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from firstlight.machine.kernels.library import Kernels, load, places_of

_LAYOUT = torch.channels_last


def serves(
    conv: nn.Conv2d, images: Tensor, *, pool: bool = False, dtype: torch.dtype = torch.bfloat16
) -> bool:
    """Whether the compiled convolution computes what `conv` does, on N×C×H×W images like these.

    It does so on a CPU, for 3×3 filters without bias, at padding 1 and stride 1, or 2 in bf16 without
    `pool`, where the numbers of channels are multiples of 16, at most 1024 (sums in fp16 would err), and,
    with `pool`, the images' sides are even.

    dtype: in which to compute, bf16 or fp32.
    """
    strided = dtype == torch.bfloat16 and not pool
    return (
        (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.stride in ((1, 1), (2, 2) if strided else (1, 1))
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
        and max(conv.in_channels, conv.out_channels) <= 1024
        and not (pool and (images.shape[2] % 2 or images.shape[3] % 2))
        and images.device.type == "cpu"
        and conv.weight.dtype == torch.float32
        and bool(load(dtype))
    )


def convolve(
    images: Tensor,
    weight: Tensor,
    stride: int = 1,
    *,
    pool: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    large_tiles: bool = False,
) -> Tensor:
    """Convolve images, N×C×H×W, with fp32 filters, out×C×3×3; `pool` adds a 2×2 max-pool.

    By Winograd's minimal filtering (Lavin & Gray 2016, arXiv 1509.09308), F(2×2, 3×3) in bf16 and
    F(4×4, 3×3) in fp32; at stride 2 in bf16 F(2, 2) for the outer taps of each direction. Gradients in bf16
    of images whose sides 4 or 3 divides take F(4×4, 3×3) or F(3×3, 3×3), and err by 2 %. Sums in fp32,
    filters' gradients in fp32, images and their gradients in `dtype`, channels-last. Call it where `serves`
    is true.

    large_tiles: whether outputs in bf16 take the tiles of gradients too: faster, with an error of 1.7 instead
        of 0.4 %. Nothing changes at stride 2, for pooled images whose sides 4 does not divide,
        or where the chip has AVX-512 FP16.
    """
    if stride == 2:
        return _ConvolveStrided.apply(images, weight)  # type: ignore[no-any-return,no-untyped-call]
    return _Convolve.apply(images, weight, pool, dtype, large_tiles)  # type: ignore[no-any-return,no-untyped-call]


class _Convolve(Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, pool: bool, dtype: torch.dtype, large_tiles: bool
    ) -> Tensor:
        images = images.to(dtype).contiguous(memory_format=_LAYOUT)
        weight = weight.contiguous(memory_format=_LAYOUT)
        count, _, height, width = images.shape
        shrink = 2 if pool else 1
        shape = (count, len(weight), height // shrink, width // shrink)
        # Of each pooled value, which of the four in its window it was.
        argmax = torch.empty(shape, dtype=torch.uint8, memory_format=_LAYOUT) if pool else None
        tile = large_tile(load(dtype), height, width, pool=pool) if large_tiles else None
        outputs = _run(images, None, weight, argmax, shape, tile, backwards=False)
        ctx.save_for_backward(images, weight, argmax)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, argmax = ctx.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=_LAYOUT)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            shape = tuple(images.shape)
            tile = large_tile(load(images.dtype), *shape[2:])
            of_images = _run(gradient, argmax, weight, None, shape, tile, backwards=True)
        if ctx.needs_input_grad[1]:
            of_weight = _filter_gradient(images, gradient, argmax, weight)
        return of_images, of_weight, None, None, None


def _run(
    images: Tensor,
    argmax_in: Tensor | None,
    weight: Tensor,
    argmax_out: Tensor | None,
    shape: tuple[int, ...],
    tile: int | None,
    *,
    backwards: bool,
) -> Tensor:
    kernels = load(images.dtype)
    filters = _transformed(weight, kernels, tile, backwards=backwards)
    result = torch.empty(shape, dtype=images.dtype, memory_format=_LAYOUT)
    name, tiles = ("large_convolve", (tile,)) if tile else ("convolve", ())
    unpooled = 1 if argmax_in is None else 2
    count, channels, height, width = images.shape
    kernels.call(
        name,
        *(*tiles, images, argmax_in, *filters, result, argmax_out),
        *(count, unpooled * height, unpooled * width, channels, shape[1]),
    )
    return result


def _transformed(
    weight: Tensor, kernels: Kernels, tile: int | None = None, *, backwards: bool
) -> tuple[Tensor, ...]:
    """Return fp32 filters, out×C×3×3 and channels-last, as the compiled convolution takes them."""
    outputs, inputs = weight.shape[:2]
    size = places_of(tile or kernels.variant.tile) * inputs * outputs
    filters = torch.empty(size, dtype=kernels.variant.factor)
    if tile:
        kernels.call("large_transform_filters", tile, weight, filters, inputs, outputs, int(backwards))
        return (filters,)
    scale = torch.empty(())
    kernels.call("transform_filters", weight, filters, scale, inputs, outputs, int(backwards))
    return filters, scale


class FixedFilters:
    """Filters that no longer change, out×C×3×3: transformed once, for images in fp32 of which none learns.

    Make it where `serves` is true.
    """

    def __init__(self, weight: Tensor) -> None:
        self._outputs = len(weight)
        self._kernels = load(torch.float32)
        weight = weight.detach().contiguous(memory_format=_LAYOUT)
        self._filters = _transformed(weight, self._kernels, backwards=False)

    def convolve(self, images: Tensor, *, pool: bool = False) -> Tensor:
        """Return what `convolve` returns, without a gradient."""
        images = images.contiguous(memory_format=_LAYOUT)
        count, channels, height, width = images.shape
        shrink = 2 if pool else 1
        shape = (count, self._outputs, height // shrink, width // shrink)
        argmax = torch.empty(shape, dtype=torch.uint8, memory_format=_LAYOUT) if pool else None
        result = torch.empty(shape, memory_format=_LAYOUT)
        self._kernels.call(
            "convolve",
            *(images, None, *self._filters, result, argmax),
            *(count, height, width, channels, self._outputs),
        )
        return result


def _filter_gradient(images: Tensor, gradient: Tensor, argmax: Tensor | None, weight: Tensor) -> Tensor:
    count, inputs, height, width = images.shape
    outputs = len(weight)
    # The library says how large: as many blocks as the cache that all cores share can hold.
    kernels = load(images.dtype)
    tile = large_tile(kernels, height, width)
    name, tiles = ("large_filter_gradient", (tile,)) if tile else ("convolve_filter_gradient", ())
    sums = torch.empty(places_of(tile or kernels.variant.tile) * inputs * outputs)
    size = torch.zeros((), dtype=torch.int64)
    kernels.call(
        "large_filter_gradient_work" if tile else "filter_gradient_work", *tiles, inputs, outputs, size
    )
    work = torch.empty(int(size), dtype=kernels.variant.factor)
    result = torch.empty_like(weight, memory_format=_LAYOUT)
    kernels.call(
        name,
        *(*tiles, images, gradient, argmax, sums, work, result),
        *(count, height, width, inputs, outputs),
    )
    return result


def large_tile(kernels: Kernels, height: int, width: int, *, pool: bool = False) -> int | None:
    """Return the side of larger tiles for such images; None where none divides theirs.

    pool: whether outputs are pooled in these tiles, each window in one of them.
    """
    fits = (tile for tile in kernels.variant.large_tiles if not (height % tile or width % tile))
    return next((tile for tile in fits if not (pool and tile % 2)), None)


class _ConvolveStrided(Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        images = images.to(torch.bfloat16).contiguous(memory_format=_LAYOUT)
        weight = weight.contiguous(memory_format=_LAYOUT)
        ctx.save_for_backward(images, weight)
        count, _, height, width = images.shape
        shape = (count, len(weight), -(-height // 2), -(-width // 2))
        return _run_strided("convolve_strided", images, weight, shape, tuple(images.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=_LAYOUT)
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            shape = tuple(images.shape)
            of_images = _run_strided("convolve_strided_gradient", gradient, weight, shape, shape)
        if ctx.needs_input_grad[1]:
            kernels, sizes = load(images.dtype), _sizes(weight, tuple(images.shape))
            sums = torch.empty(_STRIDED_FILTERS * weight.shape[0] * weight.shape[1])
            size = torch.zeros((), dtype=torch.int64)
            kernels.call("strided_filter_gradient_work", *sizes[3:], size)
            work = torch.empty(int(size), dtype=kernels.variant.factor)
            of_weight = torch.empty_like(weight, memory_format=_LAYOUT)
            kernels.call("convolve_strided_filter_gradient", images, gradient, sums, work, of_weight, *sizes)
        return of_images, of_weight


_STRIDED_FILTERS = 16
"""Values of a filter of stride 2 as transformed."""


def _sizes(weight: Tensor, images: tuple[int, ...]) -> tuple[int, ...]:
    outputs, inputs = weight.shape[:2]
    count, _, height, width = images
    return count, height, width, inputs, outputs


def _run_strided(
    name: str, values: Tensor, weight: Tensor, shape: tuple[int, ...], images: tuple[int, ...]
) -> Tensor:
    """Return the outputs, or the images' gradient, of the given shape; `images` is that of the images."""
    kernels, sizes = load(values.dtype), _sizes(weight, images)
    size = _STRIDED_FILTERS * weight.shape[0] * weight.shape[1]
    filters, scale = torch.empty(size, dtype=kernels.variant.factor), torch.empty(())
    backwards = int(name == "convolve_strided_gradient")
    kernels.call("transform_strided_filters", weight, filters, scale, *sizes[3:], backwards)
    result = torch.empty(shape, dtype=values.dtype, memory_format=_LAYOUT)
    kernels.call(name, values, filters, scale, result, *sizes)
    return result
