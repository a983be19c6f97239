"""A run's network as one ONNX file that takes pixels and gives probabilities, and a script that uses it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from firstlight.data.augment import normalise
from firstlight.data.folder import Folder
from firstlight.errors import InputError, RunFailed
from firstlight.insight.evaluation import inference
from firstlight.insight.prediction import probabilities
from firstlight.machine.streams import stream
from firstlight.models.network import for_inference
from firstlight.record.record import Record
from firstlight.serve.int8 import Int8, calibration, compare, quantise

OPSET, IR = 18, 8
"""Opset 18 is the oldest that torch's exporter writes unconverted; IR 8 came with it."""
TOLERANCE = 1e-5
"""The largest difference of probabilities between PyTorch and onnxruntime that passes."""
ROUNDINGS = 4
"""In a deep network with large logits fp32 may round by more. Then so many times the difference between two
ways of PyTorch itself passes: the network, and its copy for inference."""
MOST_DIFFERENT = 1e-4
"""A difference above this never passes."""

SCRIPT = """\
import json, sys, numpy as np, onnxruntime; from PIL import Image, ImageOps
net = onnxruntime.InferenceSession(sys.argv[1])
rule = {k: json.loads(v) for k, v in net.get_modelmeta().custom_metadata_map.items()}
(channels, h, w), fit, cubic = rule["shape"], rule["fit"], Image.Resampling.BICUBIC
for path in sys.argv[2:]:
    im = Image.open(path); im.draft(None, (max(h, w),) * 2); im = ImageOps.exif_transpose(im)
    if im.mode[0] == "I": im = Image.fromarray(((np.asarray(im).astype("u4") + 128) // 257).astype("u1"))
    rgba, im = im.convert("RGB" if im.mode == "CMYK" else "RGBA"), Image.new("RGB", im.size, "white")
    im.paste(rgba, mask=rgba if rgba.mode == "RGBA" else None); im = im.convert(rule["mode"])
    s = min(w / im.width, h / im.height); inner = [max(1, round(n * s)) for n in im.size]
    inner = inner if fit == "pad" else (w, h)
    im = ImageOps.fit(im, (w, h), cubic) if fit == "crop" else im.resize(inner, cubic)
    box = Image.new(im.mode, (w, h), "white"); box.paste(im, ((w - im.width) // 2, (h - im.height) // 2))
    p = net.run(None, {"images": np.asarray(box).reshape(h, w, channels).transpose(2, 0, 1)[None]})[0][0]
    print(json.dumps({"path": path, **{rule["classes"][i]: float(p[i]) for i in p.argsort()[::-1]}}))
"""


@dataclass(frozen=True)
class Export:
    """What was written. difference: the largest between PyTorch's and onnxruntime's probabilities.

    images: how many the two were compared on. int8: what 8 bits changed, where they were asked for; the
    difference is then that of the fp32 file from which they were made.
    """

    path: Path
    script: Path
    images: int
    difference: float
    int8: Int8 | None = None

    def __str__(self) -> str:
        file = f"{self.path} ({self.path.stat().st_size / 1e6:.1f} MB, opset {OPSET}, IR {IR})"
        if self.int8 is not None:
            return f"{file}: {self.int8}; {self.script}"
        return (
            f"{file}: largest difference from PyTorch {self.difference:.1e} on {self.images} images, "
            f"same class on all; {self.script}"
        )


class _Classifier(nn.Module):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self.network = copy.deepcopy(record.model).float().cpu()
        self.mean, self.std = record.data.mean, record.data.std

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalise(images, self.mean, self.std)).softmax(1)  # type: ignore[no-any-return]


def export(
    record: Record,
    out: Path | None = None,
    images: Tensor | None = None,
    *,
    int8: bool = False,
    data_dir: str | Path | None = None,
    calibrate: str | Path | None = None,
) -> Export:
    """Write `out`, an ONNX file from uint8 N×C×H×W `images` to fp32 N×K `probabilities`, and a script.

    out: by default model.onnx in the run folder, or model-int8.onnx; of a pretrained network NAME-model.onnx
    in the current folder.
    images: uint8 images on which it is compared with PyTorch, by default those that the run keeps; a
    pretrained network keeps none, and is compared on drawn ones.
    int8: weights and activations of 8 bits, calibrated on the run's training images, which data_dir may
    hold, or on the pictures of the folder `calibrate`; see `serve.int8`.
    Raises InputError where a file is there already, a package or every image is missing, and RunFailed where
    the file does not say what PyTorch says; nothing is left behind then.
    """
    if out is None:
        out = record.folder.default_output("model-int8.onnx" if int8 else "model.onnx")
    script = out.with_name(f"{out.stem}_classify.py")
    for path in (out, script):
        if path.exists():
            raise InputError(f"{path} is there already", "Move it away, or choose another name with --out.")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", "Make it first, or choose another with --out.")
    if images is None:
        kept = (drawn_images(record.data.shape), None) if record.folder.is_packaged else record.kept_images
        if kept is None:
            raise InputError(f"{record.path} keeps no image to compare with", "Give images from Python.")
        images = kept[0]
    onnx, runtime = _package("onnx"), _package("onnxruntime")
    _package("onnxscript")
    if not int8 and (data_dir is not None or calibrate is not None):
        raise InputError("--data-dir and --calibrate are for 8 bits", "Add --int8, or leave them out.")
    data = calibration(record, fit_of(record), data_dir=data_dir, folder=calibrate) if int8 else None
    model = _Classifier(record)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder, inference(model):
        file = Path(folder) / out.name
        with _quiet():
            program: Any = torch.onnx.export(
                model,
                (images[:1].repeat(2, 1, 1, 1),),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            proto = program.model_proto
        proto.ir_version = IR
        onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in _metadata(record).items()})
        onnx.save_model(proto, str(file), save_as_external_data=False)
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        difference = _difference(session, model, record, images)
        facts = None
        if data is not None:
            small = Path(folder) / "int8.onnx"
            quantise(file, small, data.images)
            facts = compare(file, small, data)
            proto = onnx.load(str(small))
            values = {**_metadata(record), "int8": vars(facts)}
            onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in values.items()})
            onnx.save_model(proto, str(file), save_as_external_data=False)
        (Path(folder) / script.name).write_text(SCRIPT, encoding="utf-8")
        os.replace(Path(folder) / script.name, script)
        os.replace(file, out)
    return Export(out, script, len(images), difference, facts)


def _difference(session: Any, model: nn.Module, record: Record, images: Tensor) -> float:
    """Return the largest difference of probabilities from PyTorch; RunFailed where it is too large."""
    difference, limit = 0.0, TOLERANCE
    for part in images.split(100):
        said = torch.from_numpy(session.run(None, {"images": part.contiguous().numpy()})[0])
        meant = model(part)
        here = float((said - meant).abs().max())
        if not here <= limit:
            other = probabilities(for_inference(record.model), part, record.data)
            rounding = float((other - meant).abs().max())
            limit = max(limit, min(ROUNDINGS * rounding, MOST_DIFFERENT))
        difference = max(difference, here)
        if not difference <= limit or not said.argmax(1).equal(meant.argmax(1)):
            raise RunFailed(f"the ONNX file differs from PyTorch by {difference:.1e}: nothing was written")
    return difference


def drawn_images(shape: tuple[int, int, int], count: int = 200) -> Tensor:
    """Return uint8 images, count×C×H×W, of random blots of many sizes."""
    random, (channels, height, width) = stream(0, "drawn images"), shape
    total = torch.zeros(count, channels, height, width)
    for side in (2, 4, 8, 16):
        blots = torch.randn(count, channels, side, side, generator=random)
        total += functional.interpolate(blots, (height, width), mode="bicubic", align_corners=False)
    return (total * 40 + 120).clamp(0, 255).to(torch.uint8)


def fit_of(record: Record) -> str:
    """Return how a picture of another aspect is read: as the training images were."""
    source = record.recipe.data
    return source.fit if isinstance(source, Folder) else "crop"


def _metadata(record: Record) -> dict[str, Any]:
    return {
        "classes": list(record.data.classes),
        "shape": list(record.data.shape),
        "mode": "L" if record.data.shape[0] == 1 else "RGB",
        "fit": fit_of(record),
        "ground": "white",
        "filter": "anti-aliased bicubic",
        "test_accuracy": record.summary.test_accuracy,
        "test_interval_95": record.summary.test_interval_95,
        "licence": "that of the training data; the exporting program is Apache-2.0",
    }


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"export needs the package {name}", "pip install 'firstlight[onnx]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that the exporter's own packages raise; those of others still show."""
    # The exporter logs a line for each operator of torchvision, which is never installed here.
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for package in ("torch", "onnxscript", "onnx_ir", "onnx", "copyreg"):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        try:
            yield
        finally:
            log.setLevel(level)
