"""A network's copy for inference says what the network says, by whichever way it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from firstlight.machine.kernels import library
from firstlight.machine.streams import seeded, stream
from firstlight.models import network
from firstlight.models.blocks import ConvBlock
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.models.fused import FusedConv, fused
from firstlight.models.network import NetworkSpec, for_inference
from firstlight.models.resnet import ResNetSpec
from firstlight.models.spatial_transformer import SpatialTransformerSpec

SPECS = [
    CustomResNetSpec(width=16),
    CustomResNetSpec(width=16, activation="silu", identity=True),
    FastNetSpec(widths=(16, 32, 48)),
    FastNetSpec(widths=(16, 32, 48), activation="relu", norm_scale=True),
    ResNetSpec(),
    ResNetSpec(small=False),
    SpatialTransformerSpec(width=16),
]


@pytest.fixture(params=["compiled", "onednn", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which a copy computes; skipped where this machine has it not."""
    name: str = request.param
    monkeypatch.setattr("firstlight.models.fused.is_built", lambda dtype: name == "compiled")
    if name == "compiled" and not library.load(torch.float32):
        pytest.skip(f"this machine takes {library.load(torch.float32).words}")
    if name == "plain":
        monkeypatch.setattr("firstlight.machine.kernels.onednn._is_offered", lambda: False)
    return name


def images(count: int, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=stream(0, "images"))


def trained(spec: NetworkSpec) -> nn.Module:
    """Return a network whose batch norms have statistics, and scales of both signs."""
    with seeded(0, "weights"):
        model = spec(10)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.8)
                nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(3):
            model.train()(images(16))
    return model.eval()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{type(spec).__name__}")
@pytest.mark.parametrize("count", [1, 5])
def test_the_copy_gives_the_probabilities_of_the_network(spec: NetworkSpec, count: int, way: str) -> None:
    model, batch = trained(spec), images(count)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = for_inference(model)
    assert any(isinstance(module, FusedConv) for module in copy.modules())
    with torch.no_grad():
        expected, answer = model(batch).softmax(1), copy(batch).softmax(1)
        assert float((answer - expected).abs().max()) <= 1e-5
        assert torch.equal(answer, copy(batch).softmax(1))  # what is prepared at the first call stays right
        assert float(model(images(5)).softmax(1).std(0).max()) > 1e-3  # the images matter to the answer
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_every_convolution_of_the_fast_network_is_one_step() -> None:
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    model = FastNetSpec()(10).eval()
    copy = for_inference(model)
    fusions = [module for module in copy.modules() if isinstance(module, FusedConv)]
    assert len(fusions) == 7 == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    for module in copy.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(note(type(module).__name__))
    with torch.no_grad():
        copy(images(1))
    assert not calls
    copy(images(1))  # with gradients asked for, the layers compute themselves
    assert len(calls) == 13


def test_in_half_precision_the_copy_computes_what_the_network_does() -> None:
    model, batch = trained(FastNetSpec(widths=(16, 32, 48))), images(5)
    copy = for_inference(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copy(batch), model(batch))


def test_a_pool_before_a_negative_scale_is_not_folded(way: str) -> None:
    block = ConvBlock(16, 16, pool=True)
    with torch.no_grad():
        block.norm.weight.copy_(torch.linspace(-1, 1, 16))
    batch = torch.randn(2, 16, 8, 8, generator=stream(0, "batch"))
    holder = nn.ModuleList([block.eval()])
    with torch.no_grad():
        torch.testing.assert_close(fused(holder)[0](batch), block(batch), rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_kernels_are_compiled_for_many_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[torch.dtype] = []
    monkeypatch.setattr(network, "load", loaded.append)
    monkeypatch.setattr("firstlight.models.fused.is_built", lambda dtype: False)
    model = FastNetSpec()(10)
    for_inference(model)
    for_inference(model, network.WORTH_COMPILING - 1)
    assert not loaded
    for_inference(model, network.WORTH_COMPILING)
    assert loaded == [torch.float32]


def test_a_network_of_the_user_is_answered_by_itself() -> None:
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert for_inference(own) is own
