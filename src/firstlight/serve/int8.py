"""An exported network with weights and activations of 8 bits: smaller and faster, its loss measured."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstlight.data.cifar10 import Cifar10, is_here
from firstlight.data.folder_files import picture_files
from firstlight.data.image_files import read_image
from firstlight.data.images import ImageSet
from firstlight.errors import InputError, printable
from firstlight.machine.streams import stream
from firstlight.record.record import Record

MOST_CALIBRATED = 500
MOST_COMPARED = 10_000
LEAST_AGREEMENT = 0.97
"""The share of images of the same class below which the fp32 file is recommended."""
_AT_ONCE = 50
_TIMED = 40


@dataclass(frozen=True, eq=False)
class Calibration:
    """The images from which the ranges of activations are taken, and those on which the loss is measured.

    images: uint8, N×C×H×W. words: what they are. test: labelled images, where they are at hand.
    """

    images: Tensor
    words: str
    test: ImageSet | None = None


@dataclass(frozen=True)
class Int8:
    """How a file of 8 bits compares with that of fp32.

    calibrated_on: what the ranges come from. images: on which the two were compared. agreement: the share of
    them that get the same class. accuracy, accuracy_fp32: None where the images have no labels.
    milliseconds, milliseconds_fp32: of one image in onnxruntime on one core, the shortest of 40.
    """

    calibrated_on: str
    images: int
    agreement: float
    milliseconds: float
    milliseconds_fp32: float
    accuracy: float | None = None
    accuracy_fp32: float | None = None

    def __str__(self) -> str:
        compared = f"same class as in fp32 on {self.agreement:.2%} of {self.images:,} images"
        if self.accuracy is not None and self.accuracy_fp32 is not None:
            loss = 100 * (self.accuracy_fp32 - self.accuracy)
            accuracy = f"accuracy {self.accuracy:.2%}, in fp32 {self.accuracy_fp32:.2%}"
            compared = f"{accuracy} (a loss of {loss:.2f} points), {compared}"
        if self.agreement < LEAST_AGREEMENT:
            compared += " (this network loses much by 8 bits: prefer the fp32 file)"
        times = self.milliseconds_fp32 / self.milliseconds
        return (
            f"int8, calibrated on {self.calibrated_on}: {compared}; one image in {self.milliseconds:.2g} ms, "
            f"in fp32 {self.milliseconds_fp32:.2g} ms ({times:.1f} times as fast on one core here)"
        )


def calibration(
    record: Record, fit: str, *, data_dir: str | Path | None = None, folder: str | Path | None = None
) -> Calibration:
    """Return images to calibrate on: pictures below `folder`, or else training images of the run's data.

    fit: how a picture of another aspect is read. data_dir: where the data lies; nothing is downloaded.
    Raises InputError where there are none.
    """
    source = record.recipe.data
    if folder is not None:
        files = picture_files([Path(folder)])[:MOST_CALIBRATED]
        images = torch.stack([read_image(file, record.data.shape, fit) for file in files])
        return Calibration(images, f"{len(images):,} pictures of {printable(Path(folder).resolve().name)}")
    hint = "Give --data-dir DIR, which holds them, or --calibrate DIR with pictures like those to come."
    missing = f"int8 needs images to calibrate on, and the training images of {record.path} are not at hand"
    if isinstance(source, Cifar10) and data_dir is None and not is_here():
        raise InputError(missing, hint)
    try:
        train, test = source.load(None if data_dir is None else Path(data_dir))
    except InputError as error:
        raise InputError(f"{missing}: {error.message}", hint) from None
    if train.images.shape[1:] != record.data.shape or train.classes != record.data.classes:
        raise InputError("these training images have other classes or another size than the run's", hint)
    chosen = torch.randperm(len(train), generator=stream(0, "calibration"))[:MOST_CALIBRATED]
    images = train.images[chosen.sort().values]
    return Calibration(images, f"{len(images):,} training images", test if len(test) else None)


def quantise(file: Path, out: Path, images: Tensor) -> None:
    """Write an ONNX file in 8 bits, by onnxruntime's static quantisation; images: uint8, N×C×H×W.

    Convolutions and linear layers alone, with a scale for each filter; what lies between stays fp32, since
    rounding each step of an activation costs accuracy. Ranges are those from the least to the largest value.
    """
    tools = import_module("onnxruntime.quantization")
    pre_process = import_module("onnxruntime.quantization.shape_inference").quant_pre_process

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self._parts = iter(images.split(_AT_ONCE))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self._parts, None)
            return None if part is None else {"images": part.contiguous().numpy()}

    with _quiet():
        with_shapes = out.with_suffix(".shapes")
        pre_process(str(file), str(with_shapes), skip_symbolic_shape=True, skip_optimization=True)
        tools.quantize_static(
            str(with_shapes),
            str(out),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
    with_shapes.unlink()


def compare(fp32: Path, int8: Path, data: Calibration) -> Int8:
    """Return how two files compare, on the test images or else on those of the calibration."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    # Other work on the machine makes several threads wait for each other, and one format more than the other.
    options.intra_op_num_threads = 1
    sessions = [
        runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for file in (fp32, int8)
    ]
    images = data.images if data.test is None else data.test.images[:MOST_COMPARED]
    before, after = (
        torch.cat([_ask(session, part) for part in images.split(_AT_ONCE)]).argmax(1) for session in sessions
    )
    accuracies: dict[str, float] = {}
    if data.test is not None:
        labels = data.test.labels[: len(images)]
        accuracies["accuracy_fp32"] = float((before == labels).double().mean())
        accuracies["accuracy"] = float((after == labels).double().mean())
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMED):
        for session, times in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            _ask(session, images[:1])
            times.append(time.perf_counter() - start)
    slow, fast = (1000 * min(times) for times in seconds)
    agreement = float((before == after).double().mean())
    return Int8(data.words, len(images), agreement, fast, slow, **accuracies)


def _ask(session: Any, images: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger, to which onnxruntime's tools give advice that does not apply."""
    log = logging.getLogger()
    refuse: Callable[[logging.LogRecord], bool] = lambda _: False  # noqa: E731
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)
