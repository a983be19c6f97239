"""The network of the fast recipe: its whitening, its start, its shape."""

from __future__ import annotations

import pytest
import torch
from tiny import global_random_states, random_images
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.errors import InputError
from firstlight.machine.streams import seeded, stream
from firstlight.models.blocks import ConvBlock
from firstlight.models.fast_net import FastNet, FastNetSpec
from firstlight.models.network import count_parameters, layers, prepare
from firstlight.models.whitening import Whitening


def pictures(count: int) -> Tensor:
    """Return smooth random pictures, whose neighbouring pixels are alike as those of photographs are."""
    noise = torch.randn(count, 3, 10, 10, generator=stream(0, "pictures"))
    return F.interpolate(noise, size=(32, 32), mode="bilinear") + 0.05 * torch.randn(
        count, 3, 32, 32, generator=stream(1, "pictures")
    )


def test_answers_of_the_whitening_are_uncorrelated_and_equally_strong() -> None:
    layer, images = Whitening(3, 32), pictures(50)
    layer.fit(images, floor=0.0)
    answers = F.conv2d(images, layer.weight)[:, :16].transpose(0, 1).flatten(1)
    torch.testing.assert_close(answers.cov(), torch.eye(16), rtol=0, atol=0.02)
    assert torch.equal(layer.weight[16:], -layer.weight[:16])
    assert not layer.weight.requires_grad


def test_whitening_takes_the_strongest_directions_and_does_not_blow_up_the_weak() -> None:
    layer, images = Whitening(3, 2), pictures(50)
    layer.fit(images, floor=0.0)
    patches = F.unfold(images, 3).transpose(1, 2).flatten(0, 1)
    strongest = torch.linalg.eigvalsh(patches.double().T.cov())[-1]
    assert float(layer.weight[0].norm() ** -2) == pytest.approx(float(strongest), rel=1e-4)
    flat = torch.ones(4, 3, 32, 32)
    layer.fit(flat)
    assert layer.weight.isfinite().all() and float(layer.weight.norm()) < 100


def test_whitening_makes_the_largest_component_of_each_filter_positive() -> None:
    layer = Whitening(3, 32)
    layer.fit(pictures(20))
    filters = layer.weight[:16].flatten(1)
    assert (filters.gather(1, filters.abs().argmax(1, True)) > 0).all()


@pytest.mark.parametrize("outputs", [3, 0, 56])
def test_impossible_whitenings_are_refused(outputs: int) -> None:
    with pytest.raises(InputError, match="even number of outputs up to 54"):
        Whitening(3, outputs)


def test_the_network_stage_by_stage() -> None:
    with torch.device("meta"):
        model = FastNet(10)
    listed = layers(model, (3, 32, 32))
    found = {layer.name: layer.output for layer in listed}
    grids = {"whiten.0": (32, 32, 32), "stage1.1.gelu": (64, 16, 16), "stage2.1.gelu": (256, 8, 8)}
    grids |= {"stage3.1.gelu": (256, 4, 4), "pool": (256, 1, 1), "linear": (10,)}
    assert {name: found[name] for name in grids} == grids
    filters = 9 * (32 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    learned = filters + 2 * (64 + 256 + 256) + 2560
    assert count_parameters(model) == sum(layer.parameters for layer in listed) == learned
    assert listed[0].operation == "conv 3×3, stride 1, padding 1, frozen" and not listed[0].parameters
    assert {layer.name: layer.operation for layer in listed}["pool"] == "max-pool to 1×1"
    assert list(model.endpoints()) == ["whiten", "stage1", "stage2", "stage3"]


def test_a_block_may_begin_by_handing_its_input_on() -> None:
    images = random_images(2, 16, 8, 8).float()
    with seeded(0, "block"):
        block = ConvBlock(16, 32, identity=True)
    assert torch.equal(block.conv(images)[:, :16], images)
    assert float(block.conv(images)[:, 16:].detach().std()) > 0
    assert block.norm.weight.requires_grad
    assert not ConvBlock(16, 32, norm_scale=False).norm.weight.requires_grad


def test_preparing_fits_the_whitening_and_draws_from_no_global_stream() -> None:
    model = FastNetSpec(widths=(16, 16, 16))(4)
    whitening = Whitening(3, 32)
    whitening.fit(pictures(20))
    before = global_random_states()
    prepare(model, pictures(20))
    assert torch.equal(model.whiten[0].weight, whitening.weight) and global_random_states() == before
    assert model(pictures(3)).shape == (3, 4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": (64, 256)}, "three positive numbers"),
        ({"widths": (64, 0, 64)}, "three positive numbers"),
        ({"activation": "tanh"}, "unknown activation"),
        ({"logit_scale": -1.0}, "logit_scale must be above 0"),
    ],
)
def test_impossible_networks_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FastNetSpec(**settings)  # type: ignore[arg-type]


def test_a_spec_builds_what_it_says() -> None:
    model = FastNetSpec(widths=(16, 32, 48), activation="silu", norm_scale=True)(7, channels=1)
    assert model.linear.weight.shape == (7, 48)
    assert (model.whiten[0].in_channels, model.whiten[0].out_channels) == (1, 16)
    assert any(isinstance(module, nn.SiLU) for module in model.modules())


@pytest.mark.parametrize("large_tiles", [False, True])
def test_every_block_takes_the_tiles_that_the_spec_names(large_tiles: bool) -> None:
    model = FastNetSpec(widths=(16, 16, 16), large_tiles=large_tiles)(4)
    blocks = [module for module in model.modules() if isinstance(module, ConvBlock)]
    assert [block.large_tiles for block in blocks] == [large_tiles] * 6
    assert FastNetSpec() == FastNetSpec(large_tiles=False)  # as recipes without the field were trained
