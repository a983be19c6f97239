"""`Run`: what you hold after training: a record with verbs. Nothing is trained again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from firstlight.data.augment import normalise
from firstlight.data.folder_files import picture_files
from firstlight.data.image_files import read_image
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.comparison import Comparison
from firstlight.insight.comparison import compare as compare_evaluations
from firstlight.insight.evaluation import Evaluation, Views
from firstlight.insight.evaluation import evaluate as evaluate_network
from firstlight.insight.gradcam import gradcam_pair
from firstlight.insight.prediction import Prediction, Unreadable, predictions
from firstlight.machine.machine import choose
from firstlight.models.network import InferenceCopies, for_inference
from firstlight.record.packaged import packaged, with_results
from firstlight.record.record import FIGURES, KEPT_MISTAKES, Record
from firstlight.record.values import attempted
from firstlight.serve.export import Export, fit_of
from firstlight.serve.export import export as export_network

# Drawing is loaded when something is drawn: it takes as long as classifying a picture.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from firstlight.page.page import Page


class Run(Record):
    """A run, read from its folder alone: its results, and what can be done with them."""

    def __repr__(self) -> str:
        accuracy = self.summary.test_accuracy
        score = "not evaluated" if accuracy is None else f"test accuracy {accuracy:.2%} without TTA"
        return f"<Run {self.path}: {self.recipe.name}, {len(self.history)} epochs, {score}>"

    def evaluate(
        self,
        images: ImageSet | None = None,
        *,
        data_dir: str | Path | None = None,
        tta: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ) -> Evaluation:
        """Classify `images`, or the test set of the recipe's data, again.

        tta: average over the views that training shows. A pretrained network, and one with a transferred
        body, compute in fp32 unless told otherwise, a pretrained one on the CPU: as they were judged.
        """
        if images is None:
            images = self.recipe.data.load(None if data_dir is None else Path(data_dir))[1]
        if images.classes != self.data.classes or images.shape != self.data.shape:
            raise InputError("these images have other classes or another size than the run's")
        if precision == "auto" and (self.recipe.head is not None or self.folder.is_packaged):
            precision = "fp32"  # as it was judged and as `predict` does: the same number to the image
            device = "cpu" if self.folder.is_packaged and device == "auto" else device
        machine = choose(device, precision)
        views = self.recipe.views if tta else Views()
        in_fp32 = (machine.device.type, machine.precision) == ("cpu", "fp32")
        model = for_inference(self.model, len(images) * len(views) if in_fp32 else 1)
        model = machine.place(model)
        misfit = "the network of this run does not fit its images"
        evaluation = attempted(lambda: evaluate_network(model, images, machine, views=views), misfit)
        self.model.cpu()
        return evaluation

    def predict(self, paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
        """Classify image files, and all pictures below folders; an unreadable one is an InputError."""
        answers = []
        for answer in self.predictions(paths):
            if isinstance(answer, Unreadable):
                raise answer.error
            answers.append(answer)
        return answers

    def predictions(
        self, paths: str | Path | Sequence[str | Path]
    ) -> Generator[Prediction | Unreadable, None, None]:
        """Yield what `predict` returns, file by file, in bounded memory; an unreadable file ends nothing."""
        files = picture_files([paths] if isinstance(paths, (str, Path)) else paths)
        read = partial(read_image, shape=self.data.shape, fit=self.fit)
        answers = predictions(self._copies.of(self.model, len(files)), files, self.data, read)
        misfit = "the network of this run does not fit its images"
        with contextlib.closing(answers):
            while (answer := attempted(lambda: next(answers, None), misfit)) is not None:
                yield answer

    @cached_property
    def _copies(self) -> InferenceCopies:
        return InferenceCopies()

    @property
    def fit(self) -> str:
        """How a picture of another aspect is read: as the training images were."""
        return fit_of(self)

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.data.mean, self.data.std)

    def learning_curves(self) -> Figure:
        from firstlight.figures import curves

        if not len(self.history):
            raise InputError(f"{self.path} holds no finished epoch")
        smoothing = getattr(self.recipe.objective, "label_smoothing", 0.0)
        return curves.learning_curves(self.history, self.schedule, label_smoothing=smoothing)

    def lr_finder(self) -> Figure:
        from firstlight.figures import curves

        return curves.lr_finder(_required(self.finding, "learning-rate finding (the rates were given)"))

    def augmentations(self) -> Figure:
        from firstlight.figures.augmentations import augmentations

        samples, data = _required(self.samples, "augmented samples"), self.data
        return augmentations(samples, self.recipe.augment, data.mean, data.std, data.classes)

    def confusion(self) -> Figure:
        from firstlight.figures.confusion import confusion

        return confusion(self._evaluated())

    def misclassified(self, count: int = 24) -> Figure:
        """Show the mistakes of the highest loss."""
        from firstlight.figures.images import misclassified

        return misclassified(self._evaluated(), *self._images(), count=count)

    def gradcam(self, count: int = 8, endpoint: str | None = None) -> Figure:
        """Show what spoke for the predicted and for the true class of the worst mistakes.

        endpoint: the layer whose grid is shown; by default the deepest with a grid of at least 7×7.
        """
        from firstlight.figures.images import gradcam

        evaluation, (images, indices) = self._evaluated(), self._images()
        worst = evaluation.mistakes[: min(count, KEPT_MISTAKES)]
        predicted, true = gradcam_pair(
            self.model,
            self._normalised(images[: len(worst)]),
            evaluation.predictions[worst],
            evaluation.labels[worst],
            endpoint,
        )
        return gradcam(evaluation, images, indices, predicted, true, count=count)

    def _evaluated(self) -> Evaluation:
        return _required(self.evaluation, "predictions")

    def _images(self) -> tuple[Tensor, Tensor]:
        return _required(self.kept_images, "test images")

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

    def export(self, out: str | Path | None = None, images: Tensor | None = None, **options: Any) -> Export:
        """Write the network as an ONNX file, by default model.onnx in the run folder; see `serve.export`.

        options: int8, data_dir and calibrate, for weights and activations of 8 bits.
        """
        return export_network(self, None if out is None else Path(out), images, **options)

    def report(self, *, data_dir: str | Path | None = None) -> Page:
        """Draw every picture there is data for, and write report.html; both into the run folder.

        Of a pretrained network only the page is written, as NAME-report.html in the current folder. It shows
        the mistakes where `data_dir` holds the test set, or the cache does: nothing is downloaded for it.
        """
        from firstlight.figures.style import to_png
        from firstlight.page.card_page import write_card_page
        from firstlight.page.page import write_page

        network = with_results(self.path)
        if network is not None:
            return write_card_page(network, self.recipe.data, self.evaluate, data_dir)
        if data_dir is not None:
            raise InputError("a run keeps what its page shows", "Leave out --data-dir.")
        for name, draw in self.pictures.items():
            picture = None
            with contextlib.suppress(InputError):  # the page says what is missing, and why
                picture = attempted(lambda draw=draw: to_png(draw()), name)  # type: ignore[misc]
            if picture is not None:
                self.folder.write(f"{FIGURES}/{name}.png", picture)
        return write_page(self)


_T = TypeVar("_T")


def _required(value: _T | None, what: str) -> _T:
    if value is None:
        raise InputError(f"this run keeps no {what}")
    return value


def open_run(run: str | Path | Run, parts: Sequence[Any] = ()) -> Run:
    """Return the run in a folder, or the network "pretrained:NAME"; a run is returned as it is.

    parts: a user's own classes that the recipe names, such as a network.
    """
    if isinstance(run, Run):
        return run
    folder = packaged(run)
    return Run.open(run, parts) if folder is None else Run(folder)


def evaluate(run: str | Path | Run, images: ImageSet | None = None, **options: Any) -> Evaluation:
    """Classify images, by default the recipe's test set, with a run's network; see `Run.evaluate`."""
    return open_run(run).evaluate(images, **options)


def predict(run: str | Path | Run, paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
    """Classify image files and folders with a run's network; see `Run.predict`."""
    return open_run(run).predict(paths)


def serve(run: str | Path | Run, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a local page on which a run's network classifies pictures, until Ctrl-C.

    port: 0 takes a free one. Raises InputError where the address is taken, or the extra `serve` is missing.
    """
    from firstlight.serve.app import serve

    opened = open_run(run)
    serve(opened, opened.fit, host=host, port=port)


def export(run: str | Path | Run, out: str | Path | None = None, **options: Any) -> Export:
    """Write a run's network as one ONNX file; see `Run.export`."""
    return open_run(run).export(out, **options)


def report(run: str | Path | Run, *, data_dir: str | Path | None = None) -> Page:
    """Draw the pictures and the page of a run again; see `Run.report`."""
    return open_run(run).report(data_dir=data_dir)


def compare(before: str | Path | Run, after: str | Path | Run) -> Comparison:
    """Compare what two runs say of the test images, without test-time augmentation.

    Names of images come from each run's own table of mistakes. Raises InputError where the runs have
    different classes or were judged on different images.
    """
    first, second = open_run(before), open_run(after)
    if first.data.classes != second.data.classes:
        raise InputError(
            f"{first.path} and {second.path} have different classes",
            f"The first has {_few(first.data.classes)}; the second {_few(second.data.classes)}.",
        )
    # Where neither run kept a hash, the labels are still compared.
    if _test_hash(first) != _test_hash(second):
        raise InputError(
            f"{first.path} and {second.path} were judged on different test images",
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
    evaluation = _required(run.evaluation, "predictions")
    known = run.names
    names = [known.get(index, name) for index, name in enumerate(evaluation.names)]
    return dataclasses.replace(evaluation, names=names)
