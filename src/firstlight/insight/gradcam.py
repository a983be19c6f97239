"""Grad-CAM: which places of an image spoke for a class (Selvaraju et al. 2017, arXiv 1610.02391)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstlight.errors import InputError, nearest
from firstlight.models.blocks import evaluating

MIN_GRID = 7
"""A grid narrower than this is too coarse to point at anything; see `default_endpoint`."""


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Positive evidence for one class in each of N images.

    maps: fp32, N×h×w ≥ 0, on the native grid of the endpoint; in units of the logit, not rescaled.
    targets: int64, N, the class asked about. A map without any positive evidence is all zero.
    """

    endpoint: str
    maps: Tensor
    targets: Tensor

    @property
    def empty(self) -> Tensor:
        """Bool, N: true where nothing spoke for the class."""
        return self.maps.flatten(1).amax(1) <= 0


def gradcam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    endpoint: str | None = None,
    *,
    batch_size: int = 250,
) -> Heatmaps:
    """Compute Grad-CAM for N normalised images (fp32, N×C×H×W) and one target class each (int64, N).

    endpoint: a name from `model.endpoints()`; by default the deepest whose grid is at least 7 wide.
    The model's mode and its parameters' gradients are left as they were.
    """
    if targets.shape != images.shape[:1]:
        raise InputError(f"{len(images)} images need {len(images)} targets, not {tuple(targets.shape)}")
    modules = endpoints(model)
    if endpoint is None:
        endpoint = default_endpoint(model, images[:1])
    if endpoint not in modules:
        raise InputError(f"the model has no endpoint {endpoint!r}", nearest(endpoint, list(modules)))
    maps = []
    for some, wanted in zip(images.split(batch_size), targets.split(batch_size), strict=True):
        with watch(model, {endpoint: modules[endpoint]}) as seen, torch.enable_grad():
            # The input asks for a gradient so that activations do, even under frozen weights.
            logits = model(some.detach().requires_grad_())
            score = logits.gather(1, wanted.to(logits.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, seen[endpoint])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * seen[endpoint]).sum(1).relu().detach().float().cpu())
    return Heatmaps(endpoint, torch.cat(maps), targets.cpu())


def endpoints(model: nn.Module) -> Mapping[str, nn.Module]:
    """Return the model's named endpoints."""
    if not hasattr(model, "endpoints"):
        raise InputError(
            f"{type(model).__name__} names no endpoints",
            "Give it a method `endpoints()` that maps names to modules, or use a built-in network.",
        )
    return model.endpoints()  # type: ignore[no-any-return, operator]


def default_endpoint(model: nn.Module, image: Tensor) -> str:
    """Return the deepest endpoint whose grid is at least 7 wide, for images like this 1×C×H×W one."""
    modules = endpoints(model)
    with watch(model, modules) as seen, torch.no_grad():
        model(image)
    wide = [name for name in modules if min(seen[name].shape[2:]) >= MIN_GRID]
    return wide[-1] if wide else next(iter(modules))


@contextlib.contextmanager
def watch(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules while the model, set to evaluation, is run inside the `with`.

    What is handed on is a copy, so that an in-place operation behind the endpoint cannot change
    what was seen.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            seen[name] = output
            return output.clone()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with evaluating(model):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
