"""`Run`: a run folder opened, its numbers, its network and its pictures; nothing is trained again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from firstlight.data.augment import normalise
from firstlight.data.image_files import read_image
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.figures import curves
from firstlight.insight.comparison import Comparison
from firstlight.insight.comparison import compare as compare_evaluations
from firstlight.insight.evaluation import Evaluation, inference
from firstlight.insight.evaluation import evaluate as evaluate_network
from firstlight.insight.gradcam import Heatmaps, default_endpoint, gradcam_pair
from firstlight.machine.machine import choose
from firstlight.machine.streams import seeded
from firstlight.models.blocks import layers
from firstlight.page import payload
from firstlight.page.page import Page, write_page
from firstlight.recipe import Recipe
from firstlight.recipes.assignment import Line, checklist
from firstlight.record import record
from firstlight.record.run_folder import RunFolder
from firstlight.training.history import History
from firstlight.training.lr_finder import LRFinding
from firstlight.training.schedule import OneCycle


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


class Run:
    """A run, read from its folder alone. Raises InputError where the folder lacks what is asked for."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @classmethod
    def open(cls, path: str | Path) -> Run:
        return cls(RunFolder.open(Path(path)))

    def __repr__(self) -> str:
        accuracy = self.summary.get("test_accuracy")
        score = "not evaluated" if accuracy is None else f"test accuracy {accuracy:.2%} without TTA"
        return f"<Run {self.folder.path}: {self.recipe.name}, {len(self.history)} epochs, {score}>"

    @cached_property
    def recipe(self) -> Recipe:
        return record.read_recipe(self.folder)

    @cached_property
    def data(self) -> record.DataFacts:
        return record.read_data_facts(self.folder)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, and the data with its hashes."""
        return self.folder.read_json(record.ENVIRONMENT)

    @cached_property
    def history(self) -> History:
        return record.read_history(self.folder)

    @cached_property
    def finding(self) -> LRFinding | None:
        return record.read_finding(self.folder)

    @cached_property
    def summary(self) -> dict[str, Any]:
        return record.read_summary(self.folder)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The answers on the test set, without test-time augmentation."""
        return _there(record.read_evaluation(self.folder), "predictions")

    @cached_property
    def model(self) -> nn.Module:
        """The trained network, on the CPU, in fp32."""
        if not self.folder.has(record.MODEL):
            raise InputError(f"{self.folder.path} keeps no weights")
        with seeded(0, "overwritten"):
            model = self.recipe.model(len(self.data.classes), self.data.shape[0])
        try:
            model.load_state_dict(self.folder.read_tensors(record.MODEL))
        except RuntimeError as error:
            raise InputError(f"the weights in {self.folder.path} do not fit its recipe: {error}") from None
        return model.eval()

    @cached_property
    def schedule(self) -> OneCycle | None:
        """The schedule as it was run, None before the first epoch is finished."""
        if not len(self.history) or "peak_lr" not in self.summary:
            return None
        first, recipe = self.history.epochs[0], self.recipe
        return OneCycle.over_epochs(
            self.summary["peak_lr"],
            self.summary["min_lr"],
            epochs=recipe.epochs,
            peak_epoch=recipe.peak_epoch,
            steps_per_epoch=first.step,
            shape=recipe.schedule,
        )

    def checklist(self) -> list[Line]:
        """Compare the run with the assignment, line by line."""
        with seeded(0, "shown"):
            network = self.recipe.model(len(self.data.classes), self.data.shape[0])
        return checklist(self.recipe, layers(network, self.data.shape), self.history, self.schedule)

    def evaluate(
        self,
        images: ImageSet | None = None,
        *,
        data_dir: str | Path | None = None,
        tta: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ) -> Evaluation:
        """Classify `images`, or the test set of the recipe's data, again."""
        if images is None:
            images = self.recipe.data.load(None if data_dir is None else Path(data_dir))[1]
        if images.classes != self.data.classes or images.shape != self.data.shape:
            raise InputError("these images have other classes or another size than the run's")
        machine = choose(device, precision)
        evaluation = evaluate_network(
            machine.place(self.model), images, machine, tta=tta, shift=self.recipe.tta_shift
        )
        self.model.cpu()
        return evaluation

    def predict(self, paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
        """Classify image files; every file is read before the first is classified."""
        listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not listed:
            raise InputError("no image was given")
        files = [Path(path) for path in listed]
        images = torch.stack([read_image(file, self.data.shape) for file in files])
        with inference(self.model):
            rows = torch.cat([self.model(part).softmax(1) for part in self._normalised(images).split(250)])
        return [
            Prediction(
                file, {self.data.classes[k]: float(row[k]) for k in row.argsort(descending=True).tolist()}
            )
            for file, row in zip(files, rows, strict=True)
        ]

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.data.mean, self.data.std)

    def learning_curves(self) -> Figure:
        if not len(self.history):
            raise InputError(f"{self.folder.path} holds no finished epoch")
        smoothing = self.recipe.label_smoothing
        return curves.learning_curves(self.history, self.schedule, label_smoothing=smoothing)

    def lr_finder(self) -> Figure:
        return curves.lr_finder(_there(self.finding, "learning-rate finding (the rates were given)"))

    def augmentations(self) -> Figure:
        samples = _there(record.read_tensors(self.folder, record.SAMPLES), "augmented samples")
        return curves.augmentations(
            samples, self.recipe.augment, self.data.mean, self.data.std, self.data.classes
        )

    def confusion(self) -> Figure:
        return curves.confusion(self.evaluation)

    def misclassified(self, count: int = 24) -> Figure:
        return curves.misclassified(self.evaluation, *self.kept_pictures(), count=count)

    def gradcam(self, count: int = 8, endpoint: str | None = None) -> Figure:
        """Show what spoke for the predicted and for the true class of the worst mistakes."""
        images, indices = self.kept_pictures()
        worst = self.evaluation.mistakes[: min(count, record.KEPT_MISTAKES)]
        predicted, true = self.heatmaps(
            images[: len(worst)], self.evaluation.predictions[worst], self.evaluation.labels[worst], endpoint
        )
        return curves.gradcam(self.evaluation, images, indices, predicted, true, count=count)

    def heatmaps(
        self, images: Tensor, first: Tensor, second: Tensor, endpoint: str | None = None
    ) -> tuple[Heatmaps, Heatmaps]:
        """Compute Grad-CAM of two classes for each of uint8 N×C×H×W images."""
        if not len(images):
            name = endpoint or default_endpoint(self.model, torch.zeros(1, *self.data.shape))
            return Heatmaps(name, torch.zeros(0, 1, 1), first), Heatmaps(name, torch.zeros(0, 1, 1), second)
        return gradcam_pair(self.model, self._normalised(images), first, second, endpoint)

    def kept_pictures(self) -> tuple[Tensor, Tensor]:
        """The kept test images and their places in the test set; mistakes come first, the worst first."""
        tensors = _there(record.read_tensors(self.folder, record.PICTURES), "test images")
        return tensors["images"], tensors["indices"]

    @property
    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """The six pictures by name."""
        return {
            "learning_curves": self.learning_curves,
            "lr_finder": self.lr_finder,
            "augmentations": self.augmentations,
            "confusion": self.confusion,
            "misclassified": self.misclassified,
            "gradcam": self.gradcam,
        }

    def report(self) -> Page:
        """Draw every picture there is data for, and write report.html; both into the run folder."""
        for name, draw in self.pictures.items():
            with contextlib.suppress(InputError):  # the page says what is missing, and why
                self.folder.write(f"{record.FIGURES}/{name}.png", curves.to_png(draw()))
        return write_page(self)

    def film(self) -> dict[str, Any]:
        """The augmented samples as the page shows them."""
        samples = _there(record.read_tensors(self.folder, record.SAMPLES), "augmented images")
        return payload.film(samples, self.recipe.augment, self.data.mean, self.data.std, self.data.classes)

    def heat(self, pictured: int) -> dict[str, Any]:
        """Grad-CAM of the kept mistakes among the first `pictured` pictures, as the page shows it."""
        images, indices = self.kept_pictures()
        worst = self.evaluation.mistakes
        count = min(pictured, len(worst), record.KEPT_MISTAKES)
        if not torch.equal(indices[:count], worst[:count]):
            raise InputError("the kept pictures are not those of the mistakes")
        predicted, true = self.evaluation.predictions[worst[:count]], self.evaluation.labels[worst[:count]]
        return payload.heat(*self.heatmaps(images[:count], predicted, true))


_T = TypeVar("_T")


def _there(value: _T | None, what: str) -> _T:
    if value is None:
        raise InputError(f"this run keeps no {what}")
    return value


def open_run(run: str | Path | Run) -> Run:
    """Return the run in a folder; a run is returned as it is."""
    return run if isinstance(run, Run) else Run.open(run)


def evaluate(run: str | Path | Run, images: ImageSet | None = None, **options: Any) -> Evaluation:
    """Classify images, by default the recipe's test set, with a run's network; see `Run.evaluate`."""
    return open_run(run).evaluate(images, **options)


def predict(run: str | Path | Run, paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
    """Classify image files with a run's network; see `Run.predict`."""
    return open_run(run).predict(paths)


def report(run: str | Path | Run) -> Page:
    """Draw the pictures and the page of a run again; see `Run.report`."""
    return open_run(run).report()


def compare(before: str | Path | Run, after: str | Path | Run) -> Comparison:
    """Compare what two runs say of the test images, without test-time augmentation.

    Names of images come from each run's own table of mistakes. Raises InputError where the runs have
    different classes or were judged on different images.
    """
    first, second = open_run(before), open_run(after)
    if first.data.classes != second.data.classes:
        raise InputError(
            f"{first.folder.path} and {second.folder.path} have different classes",
            f"The first has {_few(first.data.classes)}; the second {_few(second.data.classes)}.",
        )
    # Where neither run kept a hash, the labels are still compared.
    if _test_hash(first) != _test_hash(second):
        raise InputError(
            f"{first.folder.path} and {second.folder.path} were judged on different test images",
            "Compare runs on the same data.",
        )
    return compare_evaluations(_named(first), _named(second))


def _few(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _test_hash(run: Run) -> object:
    data = run.environment.get("data")
    return data.get("test_sha256") if isinstance(data, dict) else None


def _named(run: Run) -> Evaluation:
    """Return the run's evaluation, with the name of every image that it has wrong."""
    names = list(run.evaluation.names)
    for index, name in record.read_names(run.folder).items():
        if 0 <= index < len(names):
            names[index] = name
    return dataclasses.replace(run.evaluation, names=names)
