"""The spatial transformer starts as the identity, moves images as its numbers say, and learns."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import CPU, image_set, random_images
from torch import Tensor, nn

from firstlight.data.batches import Batches
from firstlight.errors import InputError
from firstlight.insight.gradcam import gradcam
from firstlight.machine.streams import seeded
from firstlight.models.network import count_parameters, layers
from firstlight.models.spatial_transformer import (
    DAMPING,
    SpatialTransformer,
    SpatialTransformerNet,
    SpatialTransformerSpec,
)
from firstlight.recipes import description, named
from firstlight.recipes.settings import with_text
from firstlight.record.recipe_file import recipe_from_json
from firstlight.training.loop import fit
from firstlight.training.optimizers import SGD
from firstlight.training.state import TrainState


def noise(count: int = 3, side: int = 32, channels: int = 3) -> Tensor:
    return random_images(count, channels, side, side).float() / 128 - 1


def with_theta(*theta: float) -> SpatialTransformer:
    transformer = SpatialTransformer(3)
    transformer.affine.bias.data = (torch.tensor(theta) - torch.eye(2, 3).flatten()) / DAMPING
    return transformer


@pytest.mark.parametrize("side", [32, 24, 9])
def test_it_starts_as_the_identity(side: int) -> None:
    transformer, images = SpatialTransformer(3), noise(side=side)
    for mode in (True, False):
        with torch.no_grad():
            seen = transformer.train(mode)(images)
        torch.testing.assert_close(seen, images, rtol=0, atol=1e-4)
    assert torch.equal(transformer.theta(images), torch.tensor([[[1.0, 0, 0], [0, 1, 0]]] * 3))


def test_at_the_start_the_logits_are_those_of_the_resnet_behind_it() -> None:
    with seeded(0, "spatial"):
        model = SpatialTransformerNet(10, width=4).eval()
    alone = copy.deepcopy(model)
    alone.transformer = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        torch.testing.assert_close(model(noise()), alone(noise()), rtol=1e-3, atol=1e-3)


def test_its_numbers_shift_and_mirror_an_image() -> None:
    images = noise()
    with torch.no_grad():
        shifted = with_theta(1.0, 0, 2 * 4 / 32, 0, 1, 0)(images)
        mirrored = with_theta(-1.0, 0, 0, 0, 1, 0)(images)
    torch.testing.assert_close(shifted[..., :28], images[..., 4:], rtol=0, atol=1e-4)
    torch.testing.assert_close(shifted[..., 28:], torch.zeros(3, 3, 32, 4), rtol=0, atol=1e-4)
    torch.testing.assert_close(mirrored, images.flip(3), rtol=0, atol=1e-4)


def test_gradients_reach_the_localisation_network() -> None:
    with seeded(0, "spatial"):
        model = SpatialTransformerNet(4, width=4)
    state = TrainState.create(model, SGD(), CPU)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    theta = model.transformer.theta(noise()).detach()
    model(noise()).square().sum().backward()
    last = model.transformer.affine
    assert last.weight.grad is not None and last.bias.grad is not None
    assert last.weight.grad.abs().sum() > 0 and (last.bias.grad.abs() > 0).all()
    batches = Batches(image_set(24, size=32), 8, seed=0, machine=CPU)
    for _ in fit(state, batches, lambda step: 0.01, epochs=1, machine=CPU):
        pass
    # From the second step on, when the last layer is zero no more, all others learn too.
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name for name in before if name.startswith("transformer")} <= changed
    assert not torch.allclose(model.transformer.theta(noise()), theta)


def test_in_bf16_places_keep_the_precision_of_fp32() -> None:
    images, transformer = noise(), with_theta(1.0, 0, 2 * 0.3 / 32, 0, 1.001, 0)
    with torch.no_grad():
        exact = transformer.eval()(images)
        with torch.autocast("cpu", torch.bfloat16):
            seen = transformer(images.bfloat16())
            assert float(transformer.theta(images)[0, 1, 1]) == pytest.approx(1.001, abs=1e-6)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(seen.float(), exact, rtol=0, atol=0.02)


def test_layers_parameters_and_gradcam() -> None:
    model = SpatialTransformerSpec(width=4)(10)
    rows = layers(model, (3, 32, 32))
    assert [row.name for row in rows][:2] == ["transformer.localisation.conv1.conv", rows[1].name]
    assert sum(row.parameters for row in rows) == count_parameters(model)
    assert list(model.endpoints()) == ["transformer", "prep", "layer1", "layer2", "layer3"]
    assert gradcam(model, noise(), torch.zeros(3, dtype=torch.int64), "layer2").maps.shape == (3, 8, 8)
    assert SpatialTransformerSpec(width=4)(5, channels=1)(noise(channels=1)).shape == (3, 5)


def test_the_network_is_named_listed_and_changed_in_a_shell() -> None:
    settings = {"model": "spatial_transformer", "width": "4", "localisation_width": "8"}
    recipe = with_text(named("shapes.demo"), settings)
    assert recipe.model == SpatialTransformerSpec(width=4, localisation_width=8)
    assert recipe_from_json(recipe.to_json()) == recipe
    lines = "\n".join(description(recipe))
    assert "transformer.affine" in lines and "channels of the localisation network" in lines
    with pytest.raises(InputError, match="localisation_width must be at least 1"):
        with_text(recipe, {"localisation_width": "0"})
