"""Grad-CAM is what its paper says, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TinyNet, digest, global_random_states
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from firstlight.data.augment import normalise
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError
from firstlight.insight.gradcam import METHODS, default_endpoint, gradcam, gradcam_pair
from firstlight.machine.streams import seeded, stream
from firstlight.models.custom_resnet import CustomResNet


class Looked(nn.Module):
    """Two convolutions with a ReLU between them that may overwrite what the first endpoint gave."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        with seeded(0, "looked"):
            self.first = nn.Conv2d(3, 5, 3, padding=1)
            self.second = nn.Conv2d(5, 6, 3, padding=1, stride=2)
            self.relu = nn.ReLU(inplace=inplace)
            self.drop = nn.Dropout()
            self.linear = nn.Linear(6, 4)

    def tail(self, features: Tensor) -> Tensor:
        """Return the logits from what comes out of `first`."""
        features = self.relu(self.second(self.relu(features)))
        return self.linear(self.drop(features).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.first(images))

    def endpoints(self) -> dict[str, nn.Module]:
        return {"first": self.first, "second": self.second}


def noise(count: int, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=stream(1, "noise"))


TARGETS = torch.tensor([0, 3, 1, 2, 2])
OTHERS = torch.tensor([1, 3, 0, 0, 3])


def by_hand(images: Tensor, targets: Tensor, *, by_place: bool = False) -> Tensor:
    """Return Grad-CAM at `first`, one image at a time; LayerCAM where the weights are those of each place."""
    model = Looked().eval()
    maps = []
    for image, target in zip(images, targets.tolist(), strict=True):
        features = model.first(image[None]).detach().requires_grad_()
        model.tail(features.clone())[0, target].backward()
        assert features.grad is not None
        weights = features.grad[0].clamp_min(0) if by_place else features.grad[0].mean((1, 2), keepdim=True)
        maps.append((weights * features.detach()[0]).sum(0).clamp_min(0))
    return torch.stack(maps)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("batch_size", [2, 250])
@pytest.mark.parametrize("method", METHODS)
def test_it_equals_the_paper_also_where_a_relu_overwrites_the_endpoint(
    inplace: bool, batch_size: int, method: str
) -> None:
    model, images = Looked(inplace=inplace), noise(5)
    found = gradcam(model, images, TARGETS, "first", method=method, batch_size=batch_size)
    assert found.endpoint == "first" and torch.equal(found.targets, TARGETS)
    expected = by_hand(images, TARGETS, by_place=method == "layercam")
    assert (expected > 0).any() and (expected == 0).any()
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-7)
    pair = gradcam_pair(model, images, TARGETS, OTHERS, "first", method=method, batch_size=batch_size)
    alone = gradcam(model, images, OTHERS, "first", method=method)
    for one, other in zip(pair, (found, alone), strict=True):
        assert one.endpoint == "first" and torch.equal(one.targets, other.targets)
        torch.testing.assert_close(one.maps, other.maps, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(pair[0].maps, pair[1].maps)


class Counted(TorchDispatchMode):
    """Notes every convolution, and of every backward pass through one which gradients were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.forward, self.backward = 0, list[tuple[bool, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forward += 1
        if func is torch.ops.aten.convolution_backward.default:
            self.backward.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("endpoint", "above"), [("layer1", 4), ("layer2", 3), ("layer3", 0)])
def test_both_classes_cost_one_forward_pass_and_nothing_below_the_endpoint(endpoint: str, above: int) -> None:
    with seeded(0):
        model = CustomResNet(4, width=2)
    with Counted() as counted:
        gradcam_pair(model, noise(5, 32), TARGETS, OTHERS, endpoint)
    assert counted.forward == 8
    assert counted.backward == [(True, False, False)] * (2 * above), "of input, weight and bias the input"


def test_where_nothing_speaks_for_a_class_the_map_is_empty() -> None:
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model[3].weight.data = torch.tensor([[-1.0] * 3, [1.0] * 3])  # against class 0 and for class 1
    found = gradcam(model, torch.rand(4, 3, 8, 8, generator=stream(0)), torch.tensor([0, 1, 0, 1]))
    assert found.endpoint == "0" and found.empty.tolist() == [True, False, True, False]
    assert (found.maps[[0, 2]] == 0).all() and (found.maps[[1, 3]] > 0).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_it_leaves_the_model_as_it_was(frozen: bool) -> None:
    model, before = Looked(inplace=True).train(), global_random_states()
    model.second.eval()
    model.requires_grad_(not frozen)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 7.0)
    kept, images = digest(model.state_dict().values()), noise(5)
    found = gradcam(model, images, TARGETS, "first")
    torch.testing.assert_close(found.maps, by_hand(noise(5), TARGETS), rtol=1e-4, atol=1e-7)
    assert (model.training, model.drop.training, model.second.training) == (True, True, False)
    assert digest(model.state_dict().values()) == kept
    assert (model.linear.weight.grad == 7).all()
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == ["linear.weight"]
    assert not (images.requires_grad or found.maps.requires_grad) and torch.equal(images, noise(5))
    assert not any(module._forward_hooks for module in model.modules())
    assert global_random_states() == before


@pytest.mark.parametrize("place", ["first", "linear"])
@pytest.mark.parametrize("enabled", [False, True])
def test_hooks_modes_and_gradients_are_as_before_after_an_error(place: str, enabled: bool) -> None:
    model = Looked().train()
    setattr(model, place, nn.Linear(1, 1))  # fails ahead of the endpoint, or behind it
    with torch.set_grad_enabled(enabled):
        with pytest.raises(RuntimeError):
            gradcam_pair(model, noise(5), TARGETS, OTHERS, "second")
        assert torch.is_grad_enabled() is enabled
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


class Overwriting(Looked):
    """An endpoint hands on what it was given, which is overwritten once the endpoint has been passed."""

    def __init__(self) -> None:
        super().__init__()
        self.through = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        seen = self.through(features)
        features.zero_()
        return self.tail(seen)

    def endpoints(self) -> dict[str, nn.Module]:
        return {"through": self.through}


class Checkpointed(Looked):
    """Runs its tail again in the backward pass, instead of keeping what it needs of it."""

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.tail, self.first(images), use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("network", [Looked, Overwriting, Checkpointed])
def test_it_equals_the_paper_for_every_network_also_where_gradients_are_off(
    network: type[Looked], frozen: bool, mode: Any
) -> None:
    model = network().train().requires_grad_(not frozen)
    with mode():
        enabled = torch.is_grad_enabled()
        found = gradcam(model, noise(5), TARGETS, next(iter(model.endpoints())))
        assert torch.is_grad_enabled() is enabled
    assert model.training and model.drop.training
    torch.testing.assert_close(found.maps, by_hand(noise(5), TARGETS), rtol=1e-4, atol=1e-7)


class Aside(Looked):
    """Has an endpoint whose output nothing depends on, and one that is never run."""

    def forward(self, images: Tensor) -> Tensor:
        self.second(self.first(images))
        return self.tail(images.repeat(1, 2, 1, 1)[:, :5])

    def endpoints(self) -> dict[str, nn.Module]:
        return {"first": self.first, "never": nn.Identity()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("endpoint", ["first", "never"])
def test_an_endpoint_that_the_logits_do_not_depend_on_is_named(frozen: bool, endpoint: str) -> None:
    model = Aside().requires_grad_(not frozen)
    with pytest.raises(InputError, match=f"do not depend on the endpoint '{endpoint}'"):
        gradcam(model, noise(5), TARGETS, endpoint)


def test_by_default_the_deepest_endpoint_at_least_7_wide_is_looked_at() -> None:
    for side, endpoint in ((14, "second"), (12, "first"), (6, "first")):
        assert default_endpoint(Looked(inplace=True), noise(1, side)) == endpoint
    assert default_endpoint(TinyNet(), noise(1)) == "norm", "of the children that have a grid"
    with seeded(0):
        found = gradcam(CustomResNet(10, width=2), noise(2, 32), torch.tensor([3, 5]))
    assert (found.endpoint, tuple(found.maps.shape)) == ("layer2", (2, 8, 8))
    with pytest.raises(InputError, match="'linear' has no grid"):
        gradcam(TinyNet(), noise(5), TARGETS, "linear")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))
    with pytest.raises(InputError, match="no endpoint of Sequential has a grid"):
        gradcam(flat, noise(5), TARGETS)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"targets": torch.tensor([0, 1, -1, 2, 3])}, "outside 0…3, the 4 classes", ""),
        ({"targets": torch.tensor([0, 1, 4, 2, 3])}, "outside 0…3, the 4 classes", ""),
        ({"targets": TARGETS[:1]}, "5 images need 5 targets", ""),
        ({"targets": torch.zeros(6, dtype=torch.int64)}, "5 images need 5 targets", ""),
        ({"endpoint": "frist"}, "no endpoint 'frist'", "'first'"),
        ({"method": "layer_cam"}, "no method 'layer_cam'", "'layercam'"),
    ],
)
def test_what_does_not_fit_is_bad_input(arguments: dict[str, Any], message: str, hint: str) -> None:
    given = {"targets": TARGETS, "endpoint": "first"} | arguments
    with pytest.raises(InputError, match=message) as caught:
        gradcam(Looked(), noise(5), **given)
    assert hint in caught.value.hint
    with pytest.raises(InputError, match=message):
        gradcam_pair(Looked(), noise(5), TARGETS, given.pop("targets"), **given)


def test_both_classes_agree_with_captum_at_every_endpoint() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: pip install captum")
    drawn = Shapes(train=24, test=1).load()[0]
    images, true = normalise(drawn.images, drawn.mean, drawn.std), drawn.labels
    with seeded(0, "captum"):
        model = CustomResNet(10, width=8)
    with torch.no_grad():
        for _ in range(60):  # until its running statistics are of these images: its maps are then not tiny
            model.train()(images)
        predicted = model.eval()(images).argmax(1)
    assert (predicted != true).any() and list(model.endpoints()) == ["prep", "layer1", "layer2", "layer3"]
    for endpoint, layer in model.endpoints().items():
        pair = gradcam_pair(model, images, predicted, true, endpoint, batch_size=10)
        for found, targets in zip(pair, (predicted, true), strict=True):
            theirs = captum.LayerGradCam(model, layer).attribute(images, targets, relu_attributions=True)
            expected = theirs.detach()[:, 0]
            for maps in (found.maps, gradcam(model, images, targets, endpoint).maps):
                assert maps.shape == expected.shape
                # Of the largest value as well, lest small maps agree whatever they show.
                apart = float((maps - expected).abs().max())
                assert apart <= 1e-5 * min(1.0, float(expected.max())), endpoint
