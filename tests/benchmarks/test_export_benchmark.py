"""The benchmark of exported networks compares what it says it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from benchmarks.export import EXIF_ORIENTATION, compared, run_with, write_odd_files
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.serve.export import drawn_images


def test_the_odd_files_are_odd(tmp_path: Path) -> None:
    modes, turns, sizes = set(), set(), set()
    for path in write_odd_files(tmp_path, 80):
        with Image.open(path) as picture:
            modes.add(picture.mode)
            turns.add(picture.getexif().get(EXIF_ORIENTATION))
            sizes.add(picture.size)
    assert modes >= {"RGB", "RGBA", "LA", "I;16", "P", "CMYK", "1", "L"}
    assert turns >= set(range(1, 9)) and len(sizes) > 70
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg", ".png"}


@pytest.mark.parametrize("own", [False, True], ids=["the package's", "a custom ResNet"])
def test_the_file_and_its_script_say_what_predict_says(tmp_path: Path, own: bool) -> None:
    files = write_odd_files(tmp_path, 40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module | None = CustomResNetSpec(width=16)(10).eval() if own else None
    figures = compared(run_with(model), drawn_images((3, 32, 32), 30), files, tmp_path)
    assert figures["images"] == figures["same_class"] == 30 and 0 < figures["difference"] <= 1e-5
    assert figures["files"] == figures["files_same_class"] == 40 and figures["file_difference"] <= 1e-5
