"""Grad-CAM: which parts of an image are evidence for a class (Selvaraju et al. 2017, arXiv 1610.02391).

LayerCAM (Jiang et al. 2021, IEEE TIP 30) weights each position of a channel by its own gradient, where
Grad-CAM weights the whole channel by the mean gradient. On a fine grid it localises better.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.errors import InputError, nearest
from firstlight.models.network import endpoints, evaluating, images_at_once

_Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]

METHODS = ("gradcam", "layercam")

MIN_GRID = 7
"""A grid narrower than this is too coarse to point at anything; see `default_endpoint`."""


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Positive evidence for one class in each of N images.

    maps: fp32, N×h×w ≥ 0, on the endpoint's own grid, in units of the logit, not rescaled.
    targets: int64, N, the class of each map. A map without positive evidence is all zero.
    """

    endpoint: str
    maps: Tensor
    targets: Tensor

    @property
    def empty(self) -> Tensor:
        """Bool, N: true where a map has no positive evidence."""
        return self.maps.flatten(1).amax(1) <= 0


def gradcam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    endpoint: str | None = None,
    *,
    method: str = "gradcam",
    batch_size: int | None = None,
) -> Heatmaps:
    """Compute Grad-CAM for N normalised images (fp32, N×C×H×W) and one target class each (int64, N).

    endpoint: a name from `models.network.endpoints`; by default the deepest whose grid is at least 7 wide.
    method: "gradcam" or "layercam".
    The model's mode and its parameters' gradients are left as they were. Raises InputError for an unknown
    endpoint, method or class, and where the endpoint has no grid or the logits do not depend on it.
    """
    (heatmaps,) = _gradcam(model, images, (targets,), endpoint, method, batch_size)
    return heatmaps


def gradcam_pair(
    model: nn.Module,
    images: Tensor,
    first: Tensor,
    second: Tensor,
    endpoint: str | None = None,
    *,
    method: str = "gradcam",
    batch_size: int | None = None,
) -> tuple[Heatmaps, Heatmaps]:
    """Compute Grad-CAM for two classes of each image, such as the predicted and the true one.

    Equal to two calls of `gradcam`, with one forward pass instead of two.
    """
    of_first, of_second = _gradcam(model, images, (first, second), endpoint, method, batch_size)
    return of_first, of_second


def _gradcam(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[Tensor],
    endpoint: str | None,
    method: str,
    batch_size: int | None,
) -> list[Heatmaps]:
    """Return the maps for each of several target classes per image."""
    for each in targets:
        if each.shape != images.shape[:1]:
            raise InputError(f"{len(images)} images need {len(images)} targets, not {tuple(each.shape)}")
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}", nearest(method, list(METHODS)))
    modules = endpoints(model)
    if endpoint is None:
        endpoint = default_endpoint(model, images[:1])
    if endpoint not in modules:
        raise InputError(f"the model has no endpoint {endpoint!r}", nearest(endpoint, list(modules)))
    maps: list[list[Tensor]] = [[] for _ in targets]
    at_once = batch_size or images_at_once(images.shape)
    parts = (part.split(at_once) for part in (images, *targets))
    # Backward passes too run in evaluation: a checkpointed network runs forward again in them.
    with evaluating(model), torch.inference_mode(False):
        for batch, *batch_targets in zip(*parts, strict=True):
            features, logits = _run_from(model, modules[endpoint], batch)
            for number, classes in enumerate(batch_targets):
                # The last backward pass frees the graph as it goes.
                keep_graph = number + 1 < len(batch_targets)
                gradient = _gradient(logits, features, classes, keep_graph=keep_graph)
                if features is None or gradient is None:
                    raise InputError(f"the logits do not depend on the endpoint {endpoint!r}")
                if features.ndim != 4:
                    raise InputError(
                        f"the endpoint {endpoint!r} has no grid, its output is {features.ndim}-D"
                    )
                values = features.detach().float()
                if method == "layercam":
                    evidence = (gradient.relu() * values).sum(1)
                else:
                    evidence = torch.einsum("nc,nchw->nhw", gradient.mean(dim=(2, 3)), values)
                maps[number].append(evidence.relu().cpu())
    return [Heatmaps(endpoint, torch.cat(maps[number]), each.cpu()) for number, each in enumerate(targets)]


def _run_from(model: nn.Module, module: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the output of a module (of its last call), and the logits; the graph begins at that output.

    Nothing below the module is kept, so a backward pass costs only what lies above it.
    """
    features: list[Tensor] = []

    def begin(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # Two copies: later operations in place may overwrite the output, or what is returned here.
        features.append(output.detach().clone().requires_grad_())
        torch.set_grad_enabled(True)  # until the `no_grad` around the network ends
        return features[-1].clone()

    with _hooked([(module, begin)]), torch.no_grad():
        logits = model(images)
    return features[-1] if features else None, logits


def _gradient(logits: Tensor, features: Tensor | None, classes: Tensor, *, keep_graph: bool) -> Tensor | None:
    """Return the gradient, N×C×h×w, of one logit per image; None where it does not depend on `features`."""
    count = logits.shape[1]
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise InputError(f"a target lies outside 0…{count - 1}, the {count} classes")
    if features is None or not logits.requires_grad:
        return None
    one_hot = torch.zeros_like(logits).scatter_(1, classes.to(logits.device)[:, None], 1)
    (gradient,) = torch.autograd.grad(logits, features, one_hot, retain_graph=keep_graph, allow_unused=True)
    return None if gradient is None else gradient.float()


def default_endpoint(model: nn.Module, image: Tensor) -> str:
    """Return the deepest endpoint whose grid is at least 7 wide, for images like this 1×C×H×W one.

    The first endpoint with a grid where all are narrower; raises InputError where no endpoint has one.
    """
    widths: dict[str, int] = {}

    def measure(name: str) -> _Hook:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if output.ndim == 4:
                widths[name] = min(output.shape[2:])

        return hook

    modules = endpoints(model)
    with evaluating(model), _hooked((modules[name], measure(name)) for name in modules), torch.no_grad():
        model(image)
    names = [name for name in modules if name in widths]
    if not names:
        raise InputError(
            f"no endpoint of {type(model).__name__} has a grid",
            "Give the network a method `endpoints()` that maps names to modules.",
        )
    return next((name for name in reversed(names) if widths[name] >= MIN_GRID), names[0])


@contextlib.contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, _Hook]]) -> Iterator[None]:
    """Call a hook after each of some modules, inside the `with`."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
