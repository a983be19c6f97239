"""One picture in, all that the page says of it out: probabilities, heat, similar images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from firstlight.data.augment import normalise
from firstlight.data.image_files import pixels_of, read_upright, window
from firstlight.data.images import DataFacts
from firstlight.errors import InputError, nearest, printable
from firstlight.insight.evaluation import inference
from firstlight.insight.gradcam import gradcam
from firstlight.insight.prediction import probabilities
from firstlight.models.network import WORTH_COMPILING, for_inference
from firstlight.record.record import Record

PREVIEW_SIDE = 960
"""Pixels of the longer side of the picture that the page shows."""
_LOSSLESS_SIDE = 256
_BATCH = 100


@dataclass(frozen=True)
class Question:
    """What is asked of one picture.

    name: what messages call the picture.
    heat: the class whose Grad-CAM is wanted, "" for the predicted one, None for none.
    similar: how many similar images are wanted.
    preview: whether the upright picture is wanted.
    """

    name: str = "the picture"
    heat: str | None = None
    similar: int = 0
    preview: bool = False


class Network:
    """A trained network with the images that its run keeps. It is used by one thread at a time."""

    def __init__(self, record: Record, fit: str) -> None:
        self.record, self.fit = record, fit
        self.data: DataFacts = record.data
        self.model: nn.Module = record.model
        self._fast = for_inference(self.model, WORTH_COMPILING)  # it will be asked for long

    @property
    def name(self) -> str:
        return printable(self.record.path.resolve().name)

    @property
    def accuracy(self) -> float | None:
        return self.record.summary.test_accuracy

    def answer(self, data: bytes, question: Question) -> dict[str, Any]:
        """Return what the network says of the picture in a file's bytes, ready for JSON.

        Raises InputError where it is no readable picture, or the class is unknown.
        """
        _, height, width = self.data.shape
        picture = read_upright(io.BytesIO(data), question.name, max(height, width))
        pixels = torch.from_numpy(pixels_of(picture, self.data.shape, self.fit))[None]
        row = probabilities(self._fast, pixels, self.data)[0]
        images = normalise(pixels, self.data.mean, self.data.std)
        order = row.argsort(descending=True).tolist()
        classes = self.data.classes
        answer: dict[str, Any] = {
            "label": classes[order[0]],
            "probabilities": [{"class": classes[k], "probability": float(row[k])} for k in order],
            "seen": vars(window(picture.size, (width, height), self.fit)),
        }
        if question.heat is not None:
            answer["heat"] = self._heat(images, self._position(question.heat) if question.heat else order[0])
        if question.similar:
            answer["similar"] = self._similar(images, question.similar)
        if question.preview:
            if min(picture.size) < PREVIEW_SIDE:  # a JPEG file was perhaps read at a fraction of its size
                picture = read_upright(io.BytesIO(data), question.name, PREVIEW_SIDE)
            answer["preview"] = data_url(picture)
        return answer

    def _position(self, name: str) -> int:
        classes = list(self.data.classes)
        if name not in classes:
            raise InputError(f"there is no class {printable(name)!r}", nearest(name, classes))
        return classes.index(name)

    def _heat(self, images: Tensor, target: int) -> dict[str, Any]:
        maps = gradcam(self.model, images, torch.tensor([target]))
        heat = maps.maps[0]
        strongest = float(heat.max())
        cells = (255 * heat / (strongest or 1)).round().to(torch.uint8)
        return {
            "class": self.data.classes[target],
            "endpoint": maps.endpoint,
            "strongest": strongest,
            "rows": cells.shape[0],
            "columns": cells.shape[1],
            "cells": cells.flatten().tolist(),
        }

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the kept images, their indices in the test set and their features of length 1."""
        kept = self.record.kept_images
        if kept is None or not len(kept[0]):
            return None
        images, indices = kept
        parts = (normalise(part, self.data.mean, self.data.std) for part in images.split(_BATCH))
        features = torch.cat([normalize(penultimate(self.model, part)) for part in parts])
        return images, indices, features

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor, dict[int, str]] | None:
        """Return labels and predictions of the whole test set, and the names that are kept."""
        evaluation = self.record.evaluation
        return None if evaluation is None else (evaluation.labels, evaluation.predictions, self.record.names)

    def prepare(self) -> int:
        """Compute the features of all kept images; return how many there are."""
        return 0 if self._kept is None else len(self._kept[0])

    def _similar(self, images: Tensor, count: int) -> list[dict[str, Any]]:
        if self._kept is None:
            return []
        _, indices, features = self._kept
        scores = features @ normalize(penultimate(self.model, images))[0]
        best = scores.topk(min(count, len(scores)))
        return [
            {
                "picture": f"/kept/{place}.png",
                "similarity": round(score, 6),
                **self._facts(int(indices[place])),
            }
            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _facts(self, index: int) -> dict[str, Any]:
        if self._known is None:
            return {"index": index, "name": f"#{index}", "true": None, "predicted": None}
        labels, predictions, names = self._known
        classes = self.data.classes
        return {
            "index": index,
            "name": printable(names.get(index, f"#{index}")),
            "true": classes[int(labels[index])],
            "predicted": classes[int(predictions[index])],
        }

    def kept_png(self, place: int) -> bytes | None:
        """Return one kept image as a PNG file, None where there is none at this place."""
        if self._kept is None or not 0 <= place < len(self._kept[0]):
            return None
        pixels = self._kept[0][place]
        array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(stream, "PNG")
        return stream.getvalue()


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the last layer with a weight matrix is fed, N×features, for N×C×H×W images."""
    inputs: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[:] = [arguments[0].detach()]

    handles = [module.register_forward_pre_hook(note) for module in _weighted(model)]
    try:
        with inference(model):
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return (inputs[0] if inputs else logits).flatten(1).float()


def _weighted(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False)):
            yield module


def data_url(picture: Image.Image) -> str:
    """Return a picture, made smaller if it is large, as a data URL: PNG where it is small, else JPEG."""
    picture = picture.copy()
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stream, kind = io.BytesIO(), "png" if max(picture.size) <= _LOSSLESS_SIDE else "jpeg"
    picture.save(stream, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
