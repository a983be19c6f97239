"""ResNet-18 and -34: the standard names, shapes and sizes, so that published weights fit or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_images
from torch import Tensor
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.insight.gradcam import default_endpoint
from firstlight.machine.streams import seeded
from firstlight.models.network import count_parameters, layers
from firstlight.models.resnet import ResNet, ResNetSpec
from firstlight.models.weights import load_weights, take_weights
from firstlight.recipes import description, named
from firstlight.recipes.settings import with_text
from firstlight.record.recipe_file import recipe_from_json

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def standard_names(depth: int) -> list[str]:
    """Return the names of the tensors of published weights, written by rule."""
    names = ["conv1.weight", *(f"bn1.{each}" for each in NORM)]
    for stage, count in enumerate(BLOCKS[depth], 1):
        for block in range(count):
            where = f"layer{stage}.{block}"
            for number in (1, 2):
                names += [f"{where}.conv{number}.weight", *(f"{where}.bn{number}.{each}" for each in NORM)]
            if stage > 1 and block == 0:
                names += [f"{where}.downsample.0.weight", *(f"{where}.downsample.1.{each}" for each in NORM)]
    return [*names, "fc.weight", "fc.bias"]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Random weights in the place of published ones for 1000 classes, with statistics of their own."""
    with seeded(1, "published"):
        weights = ResNet(1000, small=False).state_dict()
        for name, value in weights.items():
            if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
                value.uniform_(0.5, 1.5)
            if name.endswith(("running_mean", "bias")):
                value.normal_()
    return weights


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672)])
def test_names_and_number_of_parameters_are_the_standard(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ResNetSpec(depth, small=False)(1000)
    assert list(model.state_dict()) == standard_names(depth)
    assert count_parameters(model) == parameters
    assert sum(row.parameters for row in layers(model, (3, 224, 224))) == parameters


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize(
    ("small", "side", "grids"),
    [(True, 32, (32, 32, 16, 8, 4)), (False, 224, (112, 56, 28, 14, 7)), (False, 32, (16, 8, 4, 2, 1))],
)
def test_grids_and_logits(depth: int, small: bool, side: int, grids: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = ResNetSpec(depth, small)(10)
        widths: list[int] = []
        for module in model.endpoints().values():
            module.register_forward_hook(lambda _, __, output: widths.append(output.shape[-1]))
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 10)
        assert model.features(torch.zeros(2, 3, side, side)).shape == (2, 512)
    assert tuple(widths[:5]) == grids
    assert default_endpoint(ResNetSpec(18)(10), torch.zeros(1, 3, 32, 32)) == "layer3"


@pytest.mark.parametrize("small", [True, False])
def test_forward_equals_the_paper_written_out(small: bool, published: dict[str, Tensor]) -> None:
    model = ResNet(5, small=small)
    own = {name: value.clone() for name, value in published.items() if not name.startswith("fc")}
    own |= {"fc.weight": torch.randn(5, 512), "fc.bias": torch.randn(5)}
    if small:
        own["conv1.weight"] = own["conv1.weight"][..., 2:5, 2:5]
    model.load_state_dict(own)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = own[f"{name}.running_mean"], own[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, own[f"{name}.weight"], own[f"{name}.bias"])

    images = random_images(2, 3, 48, 48).float() / 128 - 1
    x = F.conv2d(images, own["conv1.weight"], stride=1 if small else 2, padding=1 if small else 3)
    x = norm(x, "bn1").relu()
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    for where in (f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)):
        stride = 2 if where in ("layer2.0", "layer3.0", "layer4.0") else 1
        shortcut = x
        if stride == 2:
            shortcut = F.conv2d(x, own[f"{where}.downsample.0.weight"], stride=2)
            shortcut = norm(shortcut, f"{where}.downsample.1")
        x = norm(F.conv2d(x, own[f"{where}.conv1.weight"], stride=stride, padding=1), f"{where}.bn1").relu()
        x = norm(F.conv2d(x, own[f"{where}.conv2.weight"], padding=1), f"{where}.bn2")
        x = (x + shortcut).relu()
    expected = x.mean(dim=(2, 3)) @ own["fc.weight"].T + own["fc.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_published_weights_on_disk_fit_but_for_the_last_layer(
    name: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / name
    save_file(published, path) if path.suffix == ".safetensors" else torch.save(published, path)
    model = ResNetSpec(small=False)(7)
    taken = load_weights(model, path, head="fc")
    assert str(taken) == "100 of 102 tensors taken, these not: fc.weight, fc.bias (of another shape)"
    assert torch.equal(model.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    assert len(load_weights(ResNetSpec(small=False)(1000), path, head="fc").taken) == 102


def test_weights_of_another_network_are_refused_by_name(published: dict[str, Tensor]) -> None:
    renamed = {
        name.replace("layer3.1.bn2.bias", "layer3.1.bn2.beta"): each for name, each in published.items()
    }
    with pytest.raises(InputError, match=r"layer3\.1\.bn2\.bias \(not in .*; layer3\.1\.bn2\.beta \(in the"):
        take_weights(ResNetSpec(small=False)(7), renamed, head="fc")
    with pytest.raises(InputError, match=r"conv1\.weight, fc\.weight, fc\.bias \(of another shape\)"):
        take_weights(ResNetSpec(small=True)(7), published, head="fc")
    # All names and shapes of ResNet-18 are in ResNet-34 too.
    with pytest.raises(InputError, match=r"layer1\.2\.conv1\.weight, .* more \(in the file alone\)"):
        take_weights(ResNetSpec(18, small=False)(7), ResNet(7, depth=34, small=False).state_dict(), head="fc")


def test_gradients_reach_every_weight_and_grey_images_are_taken() -> None:
    model = ResNetSpec()(3, channels=1)
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_the_network_is_named_listed_and_changed_in_a_shell() -> None:
    recipe = with_text(named("shapes.demo"), {"model": "resnet", "depth": "34", "small": "no"})
    assert recipe.model == ResNetSpec(34, small=False) and recipe_from_json(recipe.to_json()) == recipe
    lines = "\n".join(description(recipe))
    assert "layer3.5.conv2" in lines and "layers with weights, 18 or 34" in lines
    with pytest.raises(InputError, match="no ResNet of depth 50"):
        with_text(recipe, {"depth": "50"})
