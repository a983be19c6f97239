"""The custom ResNet is the one that the course asks for, layer by layer."""

from __future__ import annotations

import pytest
import torch
from tiny import digest, global_random_states, random_images
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.streams import seeded
from firstlight.models.custom_resnet import CustomResNet, CustomResNetSpec
from firstlight.models.network import count_parameters, endpoints, layers


def narrow(seed: int = 0, **settings: float) -> CustomResNet:
    """Return a network of width 2 whose batch norms have statistics of their own, in evaluation mode."""
    with seeded(seed, "narrow"):
        model = CustomResNet(10, width=2, **settings)  # type: ignore[arg-type]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def noise(count: int, channels: int = 3) -> Tensor:
    return random_images(count, channels, 32, 32).float() / 128 - 1


@pytest.mark.parametrize(("bias", "parameters"), [(True, 6_573_130), (False, 6_573_120)])
def test_the_number_of_parameters(bias: bool, parameters: int) -> None:
    with torch.device("meta"):
        model = CustomResNet(10, bias=bias)
    assert count_parameters(model) == parameters
    assert sum(layer.parameters for layer in layers(model, (3, 32, 32))) == parameters


def test_every_layer_and_what_comes_out_of_it() -> None:
    with torch.device("meta"):
        model = CustomResNet(10, bias=False)

    def part(name: str, width: int, side: int, pool: bool = False) -> list[tuple[str, str, tuple[int, ...]]]:
        grid, before = (width, side, side), (width, 2 * side, 2 * side)
        rows = [(f"{name}.conv", "conv 3×3, stride 1, padding 1", before if pool else grid)]
        rows += [(f"{name}.pool", "max-pool 2", grid)] if pool else []
        return [*rows, (f"{name}.norm", "batch norm", grid), (f"{name}.relu", "ReLU", grid)]

    def residual(name: str, width: int, side: int) -> list[tuple[str, str, tuple[int, ...]]]:
        rows = part(f"{name}.block.0", width, side) + part(f"{name}.block.1", width, side)
        return [*rows, (name, "add the block's input, once", (width, side, side))]

    assert [(layer.name, layer.operation, layer.output) for layer in layers(model, (3, 32, 32))] == [
        *part("prep", 64, 32),
        *part("layer1.0", 128, 16, pool=True),
        *residual("layer1.1", 128, 16),
        *part("layer2", 256, 8, pool=True),
        *part("layer3.0", 512, 4, pool=True),
        *residual("layer3.1", 512, 4),
        ("pool", "max-pool 4", (512, 1, 1)),
        ("linear", "linear, no bias", (10,)),
    ]


def test_a_layer_that_puts_out_no_tensor_is_left_out_of_the_table() -> None:
    class Last(nn.Module):
        def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
            return x[0]

    found = layers(nn.Sequential(nn.Flatten(2), nn.LSTM(64, 5), Last()), (3, 8, 8))
    assert [layer.name for layer in found] == ["0", "2"]


def test_forward_equals_the_assignment_written_out() -> None:
    model = narrow(logit_scale=0.125)
    weights = model.state_dict()

    def unit(x: Tensor, name: str, pool: bool = False) -> Tensor:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1)
        x = F.max_pool2d(x, 2) if pool else x
        norm = {part: weights[f"{name}.norm.{part}"] for part in ("running_mean", "running_var")}
        x = F.batch_norm(x, **norm, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"])
        return x.relu()

    x = unit(noise(3), "prep")
    x = unit(x, "layer1.0", pool=True)
    x = x + unit(unit(x, "layer1.1.block.0"), "layer1.1.block.1")
    x = unit(x, "layer2", pool=True)
    x = unit(x, "layer3.0", pool=True)
    x = x + unit(unit(x, "layer3.1.block.0"), "layer3.1.block.1")
    x = x.amax(dim=(2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(noise(3)), x / 8, rtol=1e-4, atol=1e-5)


def test_names_and_first_weights_stay_what_finished_runs_kept() -> None:
    with seeded(0, "weights"):
        model = CustomResNet(10, width=2)
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    places = ["prep", "layer1.0", "layer1.1.block.0", "layer1.1.block.1", "layer2"]
    places += ["layer3.0", "layer3.1.block.0", "layer3.1.block.1"]
    names = [
        name for place in places for name in [f"{place}.conv.weight", *(f"{place}.norm.{n}" for n in norm)]
    ]
    assert list(model.state_dict()) == [*names, "linear.weight", "linear.bias"]
    first = [0.04019155353307724, 0.03496657311916351, 0.16487166285514832]
    assert model.state_dict()["prep.conv.weight"][0, 0, 0].tolist() == pytest.approx(first, rel=1e-6)
    last = [0.0559924840927124, 0.10103240609169006]
    assert model.linear.bias[:2].tolist() == pytest.approx(last, rel=1e-6)


def test_endpoints_are_the_stages() -> None:
    model = narrow()
    assert list(endpoints(model)) == ["prep", "layer1", "layer2", "layer3"]
    assert all(module is getattr(model, name) for name, module in endpoints(model).items())


def test_width_classes_and_channels_can_be_chosen() -> None:
    model = CustomResNetSpec(width=3, bias=False, logit_scale=0.5)(7, channels=1)
    assert model.linear.bias is None
    assert model.logit_scale == 0.5
    assert tuple(model.linear.weight.shape) == (7, 24)
    assert tuple(model(noise(2, channels=1)).shape) == (2, 7)


@pytest.mark.parametrize("settings", [{"num_classes": 1}, {"width": 0}, {"channels": 0}])
def test_impossible_networks_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError):
        CustomResNet(**settings)  # type: ignore[arg-type]


def test_listing_layers_changes_nothing() -> None:
    model, before = narrow().train(), global_random_states()
    model.layer2.eval()
    weights, modes = digest(model.state_dict().values()), [module.training for module in model.modules()]
    layers(model, (3, 32, 32))
    assert digest(model.state_dict().values()) == weights
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert global_random_states() == before
