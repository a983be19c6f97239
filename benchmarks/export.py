"""An exported network against PyTorch on test images, and the script beside it against `predict` on files.

    python -m benchmarks.export --data-dir DATA [--images 1000] [--files 1000] [--python OTHER] [--record]

Four networks: that of the package; a custom ResNet and a ResNet-18 that learn for a short time from some
training images; EfficientNet-Lite0 with its published weights, its linear layer fitted as `folder.transfer`
fits it. Each is exported, and its file moved alone into an empty folder. There onnxruntime classifies the
first test images, and the emitted script classifies files of odd sizes, turned by EXIF, transparent, in
palettes, in CMYK, or of 16 bits. --networks takes run folders too. --python: an interpreter with another
onnxruntime, which then runs the script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.measure import parser, record
from firstlight.data.augment import normalise
from firstlight.data.batches import Batches
from firstlight.data.cifar10 import Cifar10
from firstlight.data.images import ImageSet
from firstlight.insight.prediction import probabilities
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.efficientnet_lite import EfficientNetLiteSpec
from firstlight.models.resnet import ResNetSpec
from firstlight.run import Run, open_run
from firstlight.serve.export import drawn_images
from firstlight.training.head import LogisticHead, fit_logistic
from firstlight.training.loop import fit
from firstlight.training.optimizers import SGD
from firstlight.training.schedule import OneCycle
from firstlight.training.state import TrainState

PACKAGED = "pretrained:cifar10"
EXIF_ORIENTATION = 274


def write_odd_files(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write pictures such as people have: odd sizes, eight turns, transparency, palettes, 16 bits."""
    random = np.random.default_rng(seed)
    blots = drawn_images((3, 64, 64), min(count, 200))
    paths = []
    for number in range(count):
        size = tuple(int(side) for side in random.integers(3, 300, 2))
        pixels = blots[number % len(blots)].permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        made, suffix, options = _odd(picture, number % 8, number // 8, random)
        paths.append(folder / f"{number:04d}.{suffix}")
        made.save(paths[-1], **options)
    return paths


def _odd(
    picture: Image.Image, kind: int, turn: int, random: np.random.Generator
) -> tuple[Image.Image, str, dict[str, Any]]:
    """Return a picture of one of eight kinds, the end of its name, and how it is saved."""
    grey = picture.convert("L")
    match kind:
        case 0:
            return picture, "jpg", {"exif": _turned(1 + turn % 8), "quality": 90}
        case 1:  # so large that JPEG is decoded at a fraction of its size
            return picture.resize((5 * picture.width, 5 * picture.height)), "jpg", {"exif": _turned(turn % 9)}
        case 2:
            return _transparent(picture, random), "png", {}
        case 3:
            return _transparent(grey, random), "png", {}
        case 4:
            deep = np.asarray(grey).astype(np.uint16) * 257
            return (
                Image.fromarray(deep - deep % 256 + random.integers(0, 256, deep.shape, np.uint16)),
                "png",
                {},
            )
        case 5:
            return picture.quantize(40), "png", {"transparency": 3}
        case 6:
            return picture.convert("CMYK"), "jpg", {}
        case _:
            return picture.convert("1") if turn % 2 else grey, "png", {}


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation  # 0 is not one of the eight, and turns nothing
    return exif


def _transparent(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    picture = picture.copy()
    picture.putalpha(Image.fromarray(random.integers(0, 256, picture.size[::-1], np.uint8)))
    return picture


def learned(spec: Any, train: ImageSet, epochs: int) -> nn.Module:
    """Return a network that has learned from some images for a short time."""
    machine = choose("cpu")
    batches = Batches(train, 100, seed=0, machine=machine)
    with seeded(0, "weights"):
        model = machine.place(spec(len(train.classes)))
    schedule = OneCycle(peak_epoch=epochs / 4).with_rates(0.1, 0.001).steps(epochs, len(batches))
    state = TrainState.create(model, SGD(), machine)
    for _ in fit(state, batches, schedule, epochs=epochs, machine=machine):
        pass
    return state.trained.eval()


def fitted(train: ImageSet) -> nn.Module:
    """Return the transfer network, its linear layer fitted to some images by logistic regression."""
    model = EfficientNetLiteSpec()(len(train.classes))
    model.set_normalisation(train.mean, train.std)
    model.take_weights()
    with torch.no_grad():
        parts = [model.features(normalise(part, train.mean, train.std)) for part in train.images.split(50)]
    strength = min(LogisticHead().strengths)
    weight, bias = fit_logistic(torch.cat(parts), train.labels, len(train.classes), strength)
    model.linear.load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def run_with(model: nn.Module | None) -> Run:
    """Return the run of the package, with another network in the place of its own."""
    run = Run(open_run(PACKAGED).folder)
    if model is not None:
        run.__dict__["model"] = model
    return run


def compared(
    run: Run, images: Tensor, files: list[Path], folder: Path, python: str = sys.executable
) -> dict[str, Any]:
    """Export a run's network, move the file alone into an empty folder, and compare what it says there."""
    import onnxruntime

    made = run.export(folder / "net.onnx")
    alone = folder / "alone"
    alone.mkdir()
    path = made.path.rename(alone / "net.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference, same = 0.0, 0
    for part in images.split(100):
        answer = torch.from_numpy(session.run(None, {"images": part.contiguous().numpy()})[0])
        expected = probabilities(run.model, part, run.data)
        difference = max(difference, float((answer - expected).abs().max()))
        same += int((answer.argmax(1) == expected.argmax(1)).sum())
    command = [python, str(made.script), "net.onnx", *map(str, files)]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    of_file, same_file = 0.0, 0
    for line, prediction in zip(done.stdout.splitlines(), run.predict(files), strict=True):
        said = json.loads(line)
        assert said.pop("path") == str(prediction.path)
        of_file = max(of_file, *(abs(said[key] - p) for key, p in prediction.probabilities.items()))
        same_file += next(iter(said)) == prediction.label
    version = "import onnxruntime; print(onnxruntime.__version__)"
    other = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
    return {
        "images": len(images),
        "difference": difference,
        "same_class": same,
        "files": len(files),
        "file_difference": of_file,
        "files_same_class": same_file,
        "onnxruntime": onnxruntime.__version__,
        "script_onnxruntime": other.stdout.strip(),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path)
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--files", type=int, default=1000)
    options.add_argument("--train", type=int, default=5000, help="images that the networks learn from")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--python", default=sys.executable)
    options.add_argument("--networks", nargs="+", default=["fast", "custom", "resnet18", "transfer"])
    arguments = options.parse_args()
    train, test = Cifar10().load(arguments.data_dir)
    some = train.subset(torch.arange(arguments.train))
    networks: dict[str, Callable[[], nn.Module | None]] = {
        "fast": lambda: None,
        "custom": lambda: learned(CustomResNetSpec(), some, arguments.epochs),
        "resnet18": lambda: learned(ResNetSpec(), some, arguments.epochs),
        "transfer": lambda: fitted(some.subset(torch.arange(min(1000, arguments.train)))),
    }
    for name in arguments.networks:
        run = run_with(networks[name]()) if name in networks else open_run(name)
        with tempfile.TemporaryDirectory() as folder:
            files = write_odd_files(Path(folder), arguments.files)
            figures = compared(run, test.images[: arguments.images], files, Path(folder), arguments.python)
        record(__file__, choose("cpu", "fp32"), keep=arguments.record, network=Path(name).name, **figures)


if __name__ == "__main__":
    main()
