"""Grad-CAM is what its paper says, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyNet, digest, global_random_states
from torch import Tensor, nn

from firstlight.errors import InputError
from firstlight.insight.gradcam import default_endpoint, gradcam
from firstlight.models.custom_resnet import CustomResNet
from firstlight.runtime import seeded, stream


class Looked(nn.Module):
    """Two convolutions with a ReLU between them that may overwrite what the first endpoint gave."""

    def __init__(self, *, inplace: bool) -> None:
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


def by_hand(images: Tensor, targets: Tensor) -> Tensor:
    """Return Grad-CAM at `first`, one image at a time."""
    model = Looked(inplace=False).eval()
    maps = []
    for image, target in zip(images, targets.tolist(), strict=True):
        features = model.first(image[None]).detach().requires_grad_()
        model.tail(features)[0, target].backward()
        assert features.grad is not None
        weights = features.grad[0].mean(dim=(1, 2))
        maps.append(torch.einsum("c,chw->hw", weights, features.detach()[0]).clamp_min(0))
    return torch.stack(maps)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("batch_size", [2, 250])
def test_it_equals_the_paper_also_where_a_relu_overwrites_the_endpoint(
    inplace: bool, batch_size: int
) -> None:
    images = noise(5)
    found = gradcam(Looked(inplace=inplace), images, TARGETS, "first", batch_size=batch_size)
    assert found.endpoint == "first"
    assert torch.equal(found.targets, TARGETS)
    assert tuple(found.maps.shape) == (5, 12, 12)
    expected = by_hand(images, TARGETS)
    assert (expected > 0).any() and (expected == 0).any()
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-7)


class Against(nn.Module):
    """Every feature speaks against class 0 and for class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        nn.init.constant_(self.features[0].weight, 0.5)  # type: ignore[arg-type]
        nn.init.constant_(self.features[0].bias, 1.0)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        total = self.features(images).sum(dim=(1, 2, 3))
        return torch.stack([-total, total], dim=1)

    def endpoints(self) -> dict[str, nn.Module]:
        return {"features": self.features}


def test_where_nothing_speaks_for_a_class_the_map_is_empty() -> None:
    found = gradcam(Against(), torch.rand(4, 3, 8, 8, generator=stream(0)), torch.tensor([0, 1, 0, 1]))
    assert found.empty.tolist() == [True, False, True, False]
    assert (found.maps[[0, 2]] == 0).all()
    assert (found.maps[[1, 3]] > 0).all()


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
    assert not images.requires_grad and torch.equal(images, noise(5))
    assert not found.maps.requires_grad
    assert not any(module._forward_hooks for module in model.modules())
    assert global_random_states() == before


def test_hooks_go_and_modes_come_back_after_an_error() -> None:
    model = Looked(inplace=False).train()
    with pytest.raises(RuntimeError):
        gradcam(model, noise(2)[:, :2], TARGETS[:2], "first")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_it_also_works_inside_no_grad() -> None:
    with torch.no_grad():
        found = gradcam(Looked(inplace=False), noise(5), TARGETS, "first")
    torch.testing.assert_close(found.maps, by_hand(noise(5), TARGETS), rtol=1e-4, atol=1e-7)


def test_the_custom_resnet_is_looked_at_where_its_grid_is_8_wide() -> None:
    with seeded(0):
        model = CustomResNet(10, width=2)
    images = noise(2, 32)
    assert default_endpoint(model, images[:1]) == "layer2"
    found = gradcam(model, images, torch.tensor([3, 5]))
    assert (found.endpoint, tuple(found.maps.shape)) == ("layer2", (2, 8, 8))


@pytest.mark.parametrize(("side", "endpoint"), [(14, "second"), (12, "first"), (6, "first")])
def test_by_default_the_deepest_endpoint_at_least_7_wide_is_looked_at(side: int, endpoint: str) -> None:
    assert default_endpoint(Looked(inplace=True), noise(1, side)) == endpoint


def test_an_unknown_endpoint_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'frist'") as caught:
        gradcam(Looked(inplace=False), noise(2), TARGETS[:2], "frist")
    assert "'first'" in caught.value.hint


@pytest.mark.parametrize("count", [1, 4, 6])
def test_each_image_needs_one_target(count: int) -> None:
    with pytest.raises(InputError, match="5 images need 5 targets"):
        gradcam(Looked(inplace=False), noise(5), torch.zeros(count, dtype=torch.int64), "first")


def test_a_model_without_endpoints_is_told_how_to_name_them() -> None:
    with pytest.raises(InputError, match="TinyNet names no endpoints"):
        gradcam(TinyNet(), noise(2), TARGETS[:2])
