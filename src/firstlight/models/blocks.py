"""Blocks of which networks are made, and a table that shows what a network is made of."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.machine.kernels import convolution, normalisation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": partial(nn.GELU, approximate="tanh"),
}


def check_choices(activation: str, logit_scale: float = 1.0) -> None:
    """Raise InputError where no activation has this name, or where the logits would lose their meaning."""
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}", f"Known: {', '.join(ACTIVATIONS)}.")
    if not logit_scale > 0:
        raise InputError(f"logit_scale must be above 0, not {logit_scale:g}")


class ConvBlock(nn.Sequential):
    """3×3 convolution (stride 1, padding 1) → optional 2×2 max-pool → batch norm → activation.

    activation: a name of `ACTIVATIONS`.
    identity: start with filters that hand the first channels on as they are, the others random
        (`nn.init.dirac_`), so that at first much of the image reaches every depth.
    norm_scale: whether batch norm learns a factor for each channel; the offset is always learned.

    In bf16 on a CPU that they fit, `firstlight.machine.kernels` compute the same in fewer steps.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        pool: bool = False,
        activation: str = "relu",
        identity: bool = False,
        norm_scale: bool = True,
    ) -> None:
        check_choices(activation)
        layers: list[tuple[str, nn.Module]] = [("conv", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))]
        if pool:
            layers.append(("pool", nn.MaxPool2d(2)))
        layers += [
            ("norm", nn.BatchNorm2d(outputs)),
            (activation, ACTIVATIONS[activation]()),
        ]
        super().__init__(OrderedDict(layers))
        self.pooled = pool
        self.norm.weight.requires_grad_(norm_scale)
        if identity:
            nn.init.dirac_(self.conv.weight.data[:inputs])

    def forward(self, x: Tensor) -> Tensor:
        activation = self[-1]
        fused = self._takes_kernels(x)
        if fused and convolution.serves(self.conv, x, pool=self.pooled):
            x = convolution.convolve(x, self.conv.weight, pool=self.pooled)
            return normalisation.norm_activate(x, self.norm, activation)
        for layer in self:
            if fused and layer is self.norm:
                return normalisation.norm_activate(x, self.norm, activation)
            x = layer(x)
        return x

    def _takes_kernels(self, x: Tensor) -> bool:
        # Whoever hooks a layer wants to see it at work.
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self)
        in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return in_bf16 and not hooked and normalisation.serves(self.norm, self[-1], x)


class Residual(nn.Module):
    """x + block(x), added once."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layer:
    """One line of a network's table: where, what, what comes out (without the batch), what is learned."""

    name: str
    operation: str
    output: tuple[int, ...]
    parameters: int


def layers(model: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """List the layers of a network in the order in which one C×H×W image of `shape` passes them."""
    rows: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        own = list(module.parameters(recurse=False))
        count = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        rows.append(Layer(names[module], _operation(module), tuple(output.shape[1:]), count))

    watched = [m for m in model.modules() if not list(m.children()) or isinstance(m, Residual)]
    hooks = [module.register_forward_hook(note) for module in watched]
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), evaluating(model):
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _operation(module: nn.Module) -> str:
    match module:
        case nn.Conv2d():
            height, width = module.kernel_size
            frozen = "" if module.weight.requires_grad else ", frozen"
            return f"conv {height}×{width}, stride {module.stride[0]}, padding {module.padding[0]}{frozen}"
        case nn.MaxPool2d():
            return f"max-pool {module.kernel_size}"
        case nn.AdaptiveMaxPool2d():
            return f"max-pool to {module.output_size}×{module.output_size}"
        case nn.BatchNorm2d():
            return "batch norm"
        case nn.Linear():
            return "linear" if module.bias is not None else "linear, no bias"
        case Residual():
            return "add the block's input, once"
        case _:
            return type(module).__name__


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation, and each of its modules back to its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
