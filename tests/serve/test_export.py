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

from firstlight.errors import InputError, RunFailed
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.efficientnet_lite import EfficientNetLiteSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.models.resnet import ResNetSpec
from firstlight.run import open_run
from firstlight.serve import export as module

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
