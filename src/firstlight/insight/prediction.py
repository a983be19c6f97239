"""What a network says of image files: decoded on several threads while it computes, in bounded memory."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from firstlight.data.augment import normalise
from firstlight.data.images import DataFacts
from firstlight.errors import InputError, printable
from firstlight.insight.evaluation import inference
from firstlight.machine.limits import usable_cores

BATCH = 250
AHEAD = 2
"""Batches that are being decoded, or wait, while one is computed."""
_FEW_VALUES = 4 * 3 * 32 * 32
"""Values of images that one thread classifies sooner than two."""
MOST_THREADS = 4
"""Each may hold a picture of the largest size that is read, about 0.5 GB."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image file: probabilities by class name, the highest first."""

    path: Path
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        return next(iter(self.probabilities))

    @property
    def confidence(self) -> float:
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Unreadable:
    """An image file that could not be read, and why."""

    path: Path
    error: InputError


def predictions(
    model: nn.Module, paths: Iterable[Path], facts: DataFacts, read: Callable[[Path], Tensor]
) -> Generator[Prediction | Unreadable, None, None]:
    """Yield what a network says of each file, in their order.

    model: maps normalised N×C×H×W images to logits. facts: of the images that it was trained on.
    read: returns a file as uint8 C×H×W; it is called on several threads, at most AHEAD batches ahead. An
    InputError that it raises is yielded, anything else is raised.
    """
    rest = iter(paths)
    with _quiet(), ThreadPoolExecutor(min(usable_cores(), MOST_THREADS)) as pool:
        waiting: deque[tuple[Path, Future[Tensor | InputError]]] = deque()
        try:
            while True:
                missing = (AHEAD + 1) * BATCH - len(waiting)
                waiting.extend((path, pool.submit(_attempt, read, path)) for path in islice(rest, missing))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
                yield from _answers(model, [(path, future.result()) for path, future in batch], facts)
        finally:
            for _, future in waiting:
                future.cancel()


def probabilities(model: nn.Module, images: Tensor, facts: DataFacts) -> Tensor:
    """Return fp32 N×K probabilities of uint8 N×C×H×W images."""
    with inference(model), _few_threads(images):
        return model(normalise(images, facts.mean, facts.std)).softmax(1)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _few_threads(images: Tensor) -> Iterator[None]:
    """Let one thread compute a few small images: waking another for each layer takes longer than it helps."""
    threads = torch.get_num_threads()
    if threads == 1 or images.device.type != "cpu" or images.numel() > _FEW_VALUES:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _attempt(read: Callable[[Path], Tensor], path: Path) -> Tensor | InputError:
    try:
        return read(path)
    except InputError as error:
        return error
    except (OSError, MemoryError) as error:
        return InputError(f"cannot read {printable(path)}: {error or type(error).__name__}")


def _answers(
    model: nn.Module, batch: list[tuple[Path, Tensor | InputError]], facts: DataFacts
) -> Iterator[Prediction | Unreadable]:
    pictures = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
    rows: Iterator[tuple[list[float], list[int]]] = iter(())
    if pictures:
        answer = probabilities(model, torch.stack(pictures), facts)
        rows = iter(zip(answer.tolist(), answer.argsort(1, descending=True).tolist(), strict=True))
    for path, pixels in batch:
        if isinstance(pixels, InputError):
            yield Unreadable(path, pixels)
        else:
            row, order = next(rows)
            yield Prediction(path, {facts.classes[k]: row[k] for k in order})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide Pillow's warnings; that of a picture too large for the memory is an error.

    Set once for all threads: those that set and restore filters disturb each other.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
