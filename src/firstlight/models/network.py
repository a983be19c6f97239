"""What a network offers to the rest of the house, and a table that shows what it is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from firstlight.machine.kernels.library import load
from firstlight.models.blocks import Residual

WORTH_COMPILING = 2000
"""Images from which on compiling kernels, some four seconds of a core, costs less than they save."""


class NetworkSpec(Protocol):
    """The choice of a network: a frozen dataclass that builds it."""

    def __call__(self, num_classes: int, channels: int = 3) -> nn.Module:
        """Return an untrained network that maps N×channels×H×W images to N×num_classes logits."""
        ...


def prepare(model: nn.Module, images: Tensor) -> None:
    """Show a network some normalised training images, N×C×H×W, before it is trained, where it asks for them.

    A network asks by a method `prepare(images)`.
    """
    method = getattr(model, "prepare", None)
    if method is not None:
        method(images)


def set_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Tell a network how its images are normalised, before it is trained, where it asks for that.

    A network with published weights asks, since these were trained on images normalised in another way. It
    asks by a method `set_normalisation(mean, std)`: numbers per channel, of pixel values scaled to 0…1.
    """
    method = getattr(model, "set_normalisation", None)
    if method is not None:
        method(mean, std)


def for_inference(model: nn.Module, images: int = 1) -> nn.Module:
    """Return a copy of a network that answers the same faster, in fp32, or the network where there is none.

    A network offers one by a method `folded()`. Probabilities differ by rounding alone, about 1e-6.

    images: how many it will be asked. For many the fp32 kernels are compiled, where they are not there.
    """
    method = getattr(model, "folded", None)
    if method is None:
        return model
    if images >= WORTH_COMPILING and any(map(_gains, model.modules())):
        load(torch.float32)
    return method()  # type: ignore[no-any-return]


def _gains(module: nn.Module) -> bool:
    """Whether compiled kernels compute a layer: a 3×3 convolution of stride 1 over all channels, on a CPU."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.groups) == ((3, 3), (1, 1), 1)
        and module.weight.device.type == "cpu"
    )


class InferenceCopies:
    """The copy of a network for inference, made anew where the network or its weights have changed."""

    def __init__(self) -> None:
        self._state: object = None
        self._copy: nn.Module | None = None

    def of(self, model: nn.Module, images: int = 1) -> nn.Module:
        """Return what `for_inference` returns."""
        tensors = model.state_dict(keep_vars=True).values()
        # Whoever compiles kernels for many images gets a copy that takes them.
        many = images >= WORTH_COMPILING
        state = id(model), many, [(each.data_ptr(), each._version) for each in tensors]
        if self._copy is None or state != self._state:
            self._state, self._copy = state, for_inference(model, images)
        return self._copy


def images_at_once(shape: Sequence[int]) -> int:
    """Return how many N×C×H×W images of a shape to classify in one pass: 500 small ones, 8 of 160×160.

    The outputs of the layers then stay in the caches of a processor, where 32 photos of 160×160 do not: these
    take a third longer each.
    """
    pixels = shape[-2] * shape[-1]
    return 500 if pixels <= 64 * 64 else max(204_800 // pixels, 1)


def endpoints(model: nn.Module) -> Mapping[str, nn.Module]:
    """Name the modules that Grad-CAM can look at: those of `model.endpoints()`, else its direct children."""
    method = getattr(model, "endpoints", None)
    return method() if method is not None else dict(model.named_children())


@dataclass(frozen=True)
class Layer:
    """One line of a network's table: where, what, what comes out (without the batch), what is learned."""

    name: str
    operation: str
    output: tuple[int, ...]
    parameters: int


def layers(model: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """List the layers of a network in the order in which one C×H×W image of `shape` passes them.

    A layer whose output is no tensor is left out.
    """
    rows: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        own = list(module.parameters(recurse=False))
        count = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        rows.append(Layer(names[module], _operation(module), tuple(output.shape[1:]), count))

    modules = [m for m in model.modules() if not list(m.children()) or isinstance(m, Residual)]
    hooks = [module.register_forward_hook(note) for module in modules]
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
            groups = f", {module.groups} groups" if module.groups > 1 else ""
            where = f"stride {module.stride[0]}, padding {module.padding[0]}"
            return f"conv {height}×{width}, {where}{groups}{frozen}"
        case nn.MaxPool2d():
            return f"max-pool {module.kernel_size}"
        case nn.AdaptiveMaxPool2d():
            return f"max-pool to {module.output_size}×{module.output_size}"
        case nn.AdaptiveAvgPool2d():
            return f"mean-pool to {module.output_size}×{module.output_size}"
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
    # For a single image, setting what is set already would take a tenth of the time.
    if any(training for _, training in modes):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
