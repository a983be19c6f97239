"""`Cut`: a network whose graph begins at the output of one module, for what needs its mean gradient alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Cut(TorchFunctionMode):
    """Run a network inside the `with`, under `no_grad`, `begin` being the forward hook of one of its modules.

    seen: what came out of the module (of its last call), where the graph now begins. Nothing below is kept,
        so a backward pass costs what lies above. Of the gradient at `seen`, N×C×h×w, only the mean over the
        grid is to be relied on, unless `exact`: a convolution right above gives it at less cost (see
        `_MeanGradient`).
    """

    def __init__(self, *, exact: bool = False) -> None:
        super().__init__()
        self._exact = exact
        self.seen: Tensor | None = None
        self._handed_on: Tensor | None = None
        self._version = 0

    def begin(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        # Two copies: later operations in place may write into what came out here, or into what is handed on.
        self.seen = output.detach().clone().requires_grad_()
        torch.set_grad_enabled(True)  # until the `no_grad` around the network ends
        self._handed_on = self.seen.clone()
        self._version = self._handed_on._version
        return self._handed_on

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The function is caught rather than the layer, which may use another weight than the one it keeps.
        if not self._exact and func is F.conv2d and args and self._is_handed_on(args[0]):
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _is_handed_on(self, x: Tensor) -> bool:
        """Whether this is what `begin` handed on, and still as it was."""
        return x is self._handed_on and x._version == self._version


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve, for a backward pass that gives x a gradient of the right mean where that is of use."""
    if groups != 1 or isinstance(padding, str):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    pairs = (
        (each, each) if isinstance(each, int) else (*each, *each)[:2] for each in (stride, padding, dilation)
    )
    return _MeanGradient.apply(x, weight, bias, *pairs)  # type: ignore[no-any-return, no-untyped-call]


class _MeanGradient(torch.autograd.Function):
    """A convolution that hands back, at every place of its input, the mean of the true gradient.

    Each tap of the kernel meets the sum of the output's gradient over those places where the tap lies on the
    input and not on the padding: one product with the kernel per image, where the true gradient takes one
    per place.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
    ) -> Tensor:
        # What a plain convolution saves, which is what a checkpointed network runs in the backward pass.
        context.save_for_backward(x, weight)
        context.geometry = x.shape, stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, weight = context.saved_tensors
        shape, stride, padding, dilation = context.geometry
        on_input = []
        for axis in (0, 1):
            starts = torch.arange(gradient.shape[2 + axis]) * stride[axis] - padding[axis]
            places = starts + torch.arange(weight.shape[2 + axis])[:, None] * dilation[axis]
            on_input.append(((places >= 0) & (places < shape[2 + axis])).to(gradient))
        taps = torch.einsum("nohw,ih,jw->noij", gradient, *on_input)
        mean = torch.einsum("noij,ocij->nc", taps, weight.to(taps)) / (shape[2] * shape[3])
        return mean[:, :, None, None].expand(shape), None, None, None, None, None
