"""An exported network says what PyTorch says, from the file on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from firstlight.cli import main
from firstlight.errors import InputError, RunFailed
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.efficientnet_lite import EfficientNetLiteSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.models.resnet import ResNetSpec
from firstlight.run import open_run
from firstlight.serve import export as module
from firstlight.serve.int8 import Int8

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def odd_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    rgb = Image.fromarray(rng.integers(0, 256, (41, 67, 3), np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (50, 33, 4), np.uint8))
    exif = Image.Exif()
    paths = []
    for turn in range(1, 9):
        exif[274] = turn
        paths.append(folder / f"turn{turn}.jpg")
        rgb.save(paths[-1], exif=exif)
    pictures = {
        "rgba.png": rgba,
        "grey-alpha.png": rgba.convert("LA"),
        "16.png": Image.fromarray(rng.integers(0, 65536, (20, 90), np.uint16)),
        "palette.png": rgb.quantize(40),
        "bits.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "large.jpg": rgb.resize((900, 700)),
        "tiny.png": rgb.resize((3, 40)),
    }
    for name, picture in pictures.items():
        paths.append(folder / name)
        picture.save(paths[-1])
    paths.append(folder / "clear.png")
    rgb.quantize(40).save(paths[-1], transparency=3)
    return paths


def test_the_script_beside_the_file_gives_the_answer_of_predict(trained: Path, tmp_path: Path) -> None:
    made = open_run(trained).export(tmp_path / "net.onnx")
    assert made.difference <= 1e-5 and made.images == 20
    lines = module.SCRIPT.splitlines()
    assert len(lines) <= 15 and max(map(len, lines)) <= 110
    alone = tmp_path / "alone"
    alone.mkdir()
    made.path.rename(alone / "net.onnx")
    files = odd_files(tmp_path)
    command = [sys.executable, str(made.script), "net.onnx", *map(str, files)]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for prediction, answer in zip(open_run(trained).predict(files), answers, strict=True):
        assert answer.pop("path") == str(prediction.path)
        assert answer == pytest.approx(prediction.probabilities, abs=1e-5), prediction.path


@pytest.mark.parametrize(
    "spec", [CustomResNetSpec(), FastNetSpec(), ResNetSpec()], ids=lambda s: type(s).__name__
)
def test_every_network_is_exported_as_it_is(trained: Path, tmp_path: Path, spec: object) -> None:
    run = open_run(trained)
    torch.manual_seed(1)
    run.__dict__["model"] = spec(len(run.data.classes), run.data.shape[0])  # type: ignore[operator]
    assert run.export(tmp_path / "net.onnx").difference <= 1e-5


def test_a_file_that_differs_is_not_left_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    monkeypatch.setattr(module, "ROUNDINGS", 0)
    with pytest.raises(RunFailed, match="nothing was written"):
        open_run(trained).export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        open_run(trained).export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "mine"


@pytest.mark.parametrize("confident", [False, True], ids=["a new head", "a head of large weights"])
def test_the_transfer_network_is_exported_with_its_published_weights(
    trained: Path, tmp_path: Path, confident: bool
) -> None:
    run = open_run(trained)
    model = EfficientNetLiteSpec()(len(run.data.classes), run.data.shape[0])
    model.set_normalisation(run.data.mean, run.data.std)
    try:
        model.take_weights()
    except InputError as error:
        pytest.skip(error.message)
    if confident:
        torch.nn.init.normal_(model.linear.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    run.__dict__["model"] = model.eval()
    made = run.export(tmp_path / "net.onnx")
    assert made.difference <= 1e-5 and made.images == 20


def test_eight_bits_are_smaller_and_their_loss_is_measured(trained: Path, tmp_path: Path) -> None:
    run = open_run(trained)
    large = run.export(tmp_path / "net.onnx")
    made = run.export(tmp_path / "small.onnx", int8=True)
    assert made.int8 is not None and made.int8.images == 20  # shapes are drawn anew, and their test set is 20
    assert made.int8.calibrated_on == "130 training images" and made.int8.agreement >= 0.9
    assert made.int8.accuracy_fp32 == run.summary.test_accuracy
    assert "a loss of" in str(made) and "times as fast" in str(made)
    import onnx

    proto = onnx.load(made.path)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    scales = {each.name: len(each.float_data) or len(each.raw_data) // 4 for each in proto.graph.initializer}
    assert max(size for name, size in scales.items() if name.endswith("_scale")) > 1  # one for each filter
    assert {each.domain for each in proto.opset_import} <= {"", "ai.onnx"} and proto.ir_version == module.IR
    facts = {each.key: json.loads(each.value) for each in proto.metadata_props}
    assert facts["int8"] == vars(made.int8) and facts["classes"] == list(run.data.classes)
    files = odd_files(tmp_path)
    for script, path in ((large.script, large.path), (made.script, made.path)):
        words = [sys.executable, str(script), str(path), *map(str, files)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [prediction.probabilities for prediction in run.predict(files)]
    assert all(
        answer[key] == pytest.approx(p, abs=0.1)
        for answer, row in zip(answers, expected, strict=True)
        for key, p in row.items()
    )
    assert any(
        answer[key] != pytest.approx(p, abs=1e-5)
        for answer, row in zip(answers, expected, strict=True)
        for key, p in row.items()
    )


def test_any_pictures_calibrate(trained: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    odd_files(photos)
    made = open_run(trained).export(tmp_path / "net.onnx", int8=True, calibrate=photos)
    assert made.int8 is not None and made.int8.accuracy is None
    assert made.int8.calibrated_on == "17 pictures of photos" and made.int8.images == 17


def test_eight_bits_without_images_are_refused_in_a_line(
    trained: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # Another test may have left CIFAR-10 in the cache of all.
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FIRSTLIGHT_DATA", raising=False)
    for words, reason in (
        (["pretrained:cifar10", "--int8"], "needs images to calibrate on"),
        (["pretrained:cifar10", "--int8", "--data-dir", "absent"], "absent does not exist"),
        ([str(trained), "--out", "net.onnx", "--calibrate", "photos"], "are for 8 bits"),
        ([str(trained), "--int8", "--hub", "hub"], "holds the fp32 file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", *words])
        message = capsys.readouterr().err
        assert ended.value.code == 2 and reason in message and message.count("\n") == 2, message
    assert not list(tmp_path.iterdir())


def test_a_difference_is_held_against_the_rounding_of_pytorch_itself(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    run = open_run(trained)

    def far(model: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.Sequential(model, Shift())

    class Shift(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1.01  # another way whose probabilities are far from those of the network

    monkeypatch.setattr(module, "for_inference", far)
    assert run.export(tmp_path / "net.onnx").difference <= 1e-5
    monkeypatch.setattr(module, "for_inference", lambda model: model)
    with pytest.raises(RunFailed, match="nothing was written"):
        run.export(tmp_path / "other.onnx")


def test_a_network_that_loses_much_by_eight_bits_is_not_recommended() -> None:
    facts = {
        "calibrated_on": "500 training images",
        "images": 100,
        "milliseconds": 1.0,
        "milliseconds_fp32": 2.0,
    }
    good, bad = (Int8(agreement=share, accuracy=0.5, accuracy_fp32=0.65, **facts) for share in (0.99, 0.7))
    assert "prefer the fp32 file" in str(bad) and "prefer" not in str(good)
    assert "a loss of 15.00 points" in str(bad) and "2.0 times as fast" in str(bad)
