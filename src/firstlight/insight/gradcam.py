"""Grad-CAM: which places of an image spoke for a class (Selvaraju et al. 2017, arXiv 1610.02391).

LayerCAM (Jiang et al. 2021, IEEE TIP 30) is there by name: it weighs each place of a channel by its own
gradient, where Grad-CAM weighs the whole channel by the mean. On a fine grid it points better.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from firstlight.errors import InputError, nearest
from firstlight.models.network import endpoints, evaluating

_Hook = Callable[[nn.Module, Any, Any], Tensor | None]

METHODS = ("gradcam", "layercam")

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
    method: str = "gradcam",
    batch_size: int = 250,
) -> Heatmaps:
    """Compute Grad-CAM for N normalised images (fp32, N×C×H×W) and one target class each (int64, N).

    endpoint: a name from `models.network.endpoints`; by default the deepest whose grid is at least 7 wide.
    method: "gradcam" or "layercam".
    The model's mode and its parameters' gradients are left as they were.
    """
    return _gradcam(model, images, (targets,), endpoint, method, batch_size)[0]


def gradcam_pair(
    model: nn.Module,
    images: Tensor,
    first: Tensor,
    second: Tensor,
    endpoint: str | None = None,
    *,
    method: str = "gradcam",
    batch_size: int = 250,
) -> tuple[Heatmaps, Heatmaps]:
    """Compute Grad-CAM for two classes of each image: two calls of `gradcam` in one forward pass."""
    of_first, of_second = _gradcam(model, images, (first, second), endpoint, method, batch_size)
    return of_first, of_second


def _gradcam(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[Tensor],
    endpoint: str | None,
    method: str,
    batch_size: int,
) -> list[Heatmaps]:
    """Return the maps of each of several classes per image."""
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
    features: Tensor | None = None

    def begin_graph(_: nn.Module, __: object, output: Any) -> Tensor:
        """Let the graph begin at the endpoint's output, so that nothing below it is kept or run backwards."""
        nonlocal features
        if not _is_grid(output):
            raise InputError(f"the endpoint {endpoint!r} puts out no grid (N×C×h×w)", "Choose another one.")
        # Two copies: later in-place operations may write into this output, or into what is passed on.
        features = output.detach().clone().requires_grad_()
        torch.set_grad_enabled(True)  # until the `no_grad` around the network ends
        return features.clone()

    batches = zip(*(part.split(batch_size) for part in (images, *targets)), strict=True)
    # The backward pass too needs evaluation mode: a checkpointed network runs forward again in it.
    with evaluating(model), torch.inference_mode(False):
        for batch, *batch_targets in batches:
            features = None
            with _hooked([(modules[endpoint], begin_graph)]), torch.no_grad():
                logits = model(batch)
            for number, classes in enumerate(batch_targets):
                # The last backward pass frees the graph on its way.
                gradient = _gradient(logits, features, classes, keep_graph=number + 1 < len(targets))
                if features is None or gradient is None:
                    raise InputError(f"the logits do not depend on the endpoint {endpoint!r}")
                weights = gradient.relu() if method == "layercam" else gradient.mean((2, 3), keepdim=True)
                maps[number].append((weights * features.detach().float()).sum(1).relu().cpu())
    return [Heatmaps(endpoint, torch.cat(maps[number]), each.cpu()) for number, each in enumerate(targets)]


def _is_grid(output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4


def _gradient(logits: Tensor, features: Tensor | None, classes: Tensor, *, keep_graph: bool) -> Tensor | None:
    """Return the gradient, N×C×h×w, of one logit per image; None where it does not depend on `features`."""
    count = logits.shape[1]
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise InputError(f"a target lies outside 0…{count - 1}, the {count} classes")
    if features is None or not logits.requires_grad:
        return None
    chosen = torch.zeros_like(logits).scatter_(1, classes.to(logits.device)[:, None], 1)
    (gradient,) = torch.autograd.grad(logits, features, chosen, retain_graph=keep_graph, allow_unused=True)
    return None if gradient is None else gradient.float()


def default_endpoint(model: nn.Module, image: Tensor) -> str:
    """Return the deepest endpoint whose grid is at least 7 wide, for images like this 1×C×H×W one.

    Where all grids are smaller it is the first that has a grid. Raises InputError where none has.
    """
    modules = endpoints(model)
    widths: dict[str, int] = {}

    def measure(name: str, _: nn.Module, __: object, output: Any) -> None:
        if _is_grid(output):
            widths[name] = min(output.shape[2:])

    hooks = [(module, partial(measure, name)) for name, module in modules.items()]
    with evaluating(model), _hooked(hooks), torch.no_grad():
        model(image)
    grids = [name for name in modules if name in widths]
    if not grids:
        raise InputError(
            f"{type(model).__name__} has no endpoint that puts out a grid (N×C×h×w), as Grad-CAM needs",
            "Give it a method `endpoints()` that maps names to modules with such outputs.",
        )
    wide = [name for name in grids if widths[name] >= MIN_GRID]
    return wide[-1] if wide else grids[0]


@contextlib.contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, _Hook]]) -> Iterator[None]:
    """Call a hook after each of some modules, inside the `with`."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
