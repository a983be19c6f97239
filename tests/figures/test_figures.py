"""Figures hold the data they were given, whatever its size, and nothing in them is cut off or overlaps."""

from __future__ import annotations

import dataclasses
import io
import itertools
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from tiny import random_images
from torch import Tensor

from firstlight.data.augment import Augmentation, Crop, Cutout, FlipLR, normalise
from firstlight.errors import InputError
from firstlight.figures.augmentations import augmentations, caption, replay
from firstlight.figures.confusion import confusion
from firstlight.figures.curves import learning_curves, lr_finder
from firstlight.figures.images import gradcam, misclassified, overlay
from firstlight.figures.style import fitted, keep_apart, to_png, width_of
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import Heatmaps
from firstlight.training.classic_rules import classic_rates
from firstlight.training.history import Epoch, History
from firstlight.training.lr_finder import LRFinding
from firstlight.training.race import Calibration, decide
from firstlight.training.schedule import Cycle
from firstlight.training.trials import Trial

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
PARTS = (Crop(32, 4), FlipLR(), Cutout(8))
EIGHT = random_images(8, 3, 32, 32)
LONG = ("a name of a class that is far too long to be written out", "ok", "$x$ and $y$", "two\nlines")


def a_history(epochs: int = 6, *, parts: tuple[str, ...] = ("validation", "test")) -> History:
    def epoch(n: int) -> Epoch:
        scores = {"validation_loss": 2.1 / n, "validation_accuracy": 0.98 - 0.7 / n}
        scores |= {"test_loss": 2.2 / n, "test_accuracy": 0.97 - 0.7 / n}
        measured = {name: value for name, value in scores.items() if name.split("_")[0] in parts}
        return Epoch(n, 10 * n, 0.1 / n, 2 / n, 1 - 0.7 / n, 100.0, 5.0 * n, **measured)

    return History(tuple(map(epoch, range(1, epochs + 1))))


def a_finding(**changes: object) -> LRFinding:
    rates = np.geomspace(1e-4, 1.0, 60)
    losses = 2.3 - 0.6 * np.exp(-((np.log10(rates) + 1) ** 2)) + np.linspace(0, 1, 60) ** 12
    noisy = losses + 0.02 * np.sin(np.arange(60) * 2.7)
    curves = (tuple(values.tolist()) for values in (rates, noisy, losses))
    because = (
        "the highest rate before half of the fall was lost",
        "the rate at the first tenth of that fall",
    )
    finding = LRFinding(*curves, 0.4, 0.0018, *because, 3.0)
    return dataclasses.replace(finding, **changes)  # type: ignore[arg-type]


def an_evaluation(classes: tuple[str, ...] = CLASSES, count: int = 120, sure: float = 2.0) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(classes)
    logits = 1.2 * torch.randn(count, len(classes), generator=generator)
    logits[torch.arange(count), labels] += sure
    return Evaluation(classes, labels, logits.softmax(1), [f"#{index}" for index in range(count)])


def some_samples(parts: tuple[Augmentation, ...], images: Tensor = EIGHT) -> dict[str, Tensor]:
    generator, (height, width) = torch.Generator().manual_seed(2), tuple(images.shape[2:])
    samples = {"images": images, "labels": torch.arange(len(images)) % len(CLASSES)}
    for number, part in enumerate(parts):
        order = torch.arange(len(images))
        samples[f"draws_{number}"] = part.sample(order, height, width, lambda _: generator, 0)
        height, width = part.output_size(height, width)
    return samples


def kept_images(evaluation: Evaluation, **shape: int) -> tuple[Tensor, Tensor]:
    """Return some images and their indices, in an order that is not that of the losses."""
    indices = evaluation.mistakes.flip(0)
    return random_images(len(indices), **{"height": 32, "width": 32, **shape}), indices


def maps_of(evaluation: Evaluation, count: int, *, empty: tuple[int, ...] = ()) -> tuple[Heatmaps, Heatmaps]:
    worst = evaluation.mistakes[:count]
    predicted, true = torch.rand(2, len(worst), 8, 8, generator=torch.Generator().manual_seed(3))
    true = (0.5 * true).index_fill(0, torch.tensor(empty, dtype=torch.int64), 0)
    heat = ((predicted, evaluation.predictions), (true, evaluation.labels))
    first, second = (Heatmaps("layer2", maps, labels[worst]) for maps, labels in heat)
    return first, second


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def tiles_of(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def line(axes: Axes, name: str) -> tuple[np.ndarray, np.ndarray]:
    (curve,) = [line for line in axes.lines if line.get_label() == name]
    return np.asarray(curve.get_xdata(), float), np.asarray(curve.get_ydata(), float)


def as_array(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def misclassified_of(evaluation: Evaluation, count: int = 24) -> Figure:
    return misclassified(evaluation, *kept_images(evaluation), count=count)


def gradcam_of(evaluation: Evaluation, count: int = 8, empty: tuple[int, ...] = (1,)) -> Figure:
    maps = maps_of(evaluation, count, empty=empty)
    return gradcam(evaluation, *kept_images(evaluation), *maps, count=count)


def augmentations_of(samples: dict[str, Tensor], parts: tuple[Augmentation, ...]) -> Figure:
    return augmentations(samples, parts, MEAN, STD, CLASSES)


EVERY: dict[str, Callable[[], Figure]] = {
    "curves": lambda: learning_curves(a_history(24), Cycle(0.4, 0.004, 240, 49)),
    "curves of one epoch": lambda: learning_curves(a_history(1)),
    "curves without a schedule": lambda: learning_curves(a_history(3, parts=())),
    "finder": lambda: lr_finder(a_finding()),
    "finder, rates at the ends": lambda: lr_finder(a_finding(min_lr=1e-4, peak_lr=1.0)),
    "finder, both rates equal": lambda: lr_finder(a_finding(min_lr=0.01, peak_lr=0.01)),
    "augmentations": lambda: augmentations_of(some_samples(PARTS), PARTS),
    "confusion": lambda: confusion(an_evaluation()),
    "confusion of two": lambda: confusion(an_evaluation(("good", LONG[0]))),
    "confusion of awkward names": lambda: confusion(an_evaluation(LONG)),
    "misclassified": lambda: misclassified_of(an_evaluation()),
    "misclassified, awkward names": lambda: misclassified_of(an_evaluation(LONG, sure=1.0)),
    "misclassified, one": lambda: misclassified_of(an_evaluation(), 1),
    "gradcam": lambda: gradcam_of(an_evaluation()),
    "gradcam, awkward names": lambda: gradcam_of(an_evaluation(LONG, sure=1.0), 3),
    "no mistakes": lambda: misclassified_of(an_evaluation(sure=60.0)),
}


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_cut_off_and_no_two_words_overlap(name: str) -> None:
    figure = EVERY[name]()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # Tick labels beyond the limits of their axis are kept by matplotlib, but not drawn.
    undrawn = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not min(axis.get_view_interval()) - 1e-9 <= tick.get_loc() <= max(axis.get_view_interval()) + 1e-9
        for label in (tick.label1, tick.label2)
    }
    boxes = {text: text.get_window_extent() for text in texts if text not in undrawn}
    across, down = figure.get_size_inches() * figure.dpi
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= across and box.y1 <= down, text.get_text()
    straight = [(text, box) for text, box in boxes.items() if text.get_rotation() == 0]
    for (one, a), (other, b) in itertools.combinations(straight, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) <= 1 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 2
        assert apart, (one.get_text(), other.get_text())


def test_a_figure_is_the_same_file_every_time_and_150_dots_an_inch_and_a_notebook_shows_it() -> None:
    figure = lr_finder(a_finding())
    across, down = figure.get_size_inches()
    assert to_png(figure) == to_png(lr_finder(a_finding()))
    with Image.open(io.BytesIO(to_png(figure))) as image:
        assert image.size == (round(150 * across), round(150 * down))
    bundle, metadata = figure._repr_mimebundle_()  # type: ignore[attr-defined]
    assert bundle["image/png"] == to_png(figure)
    assert metadata["image/png"]["width"] == round(96 * across)
    # The user's own settings change nothing and are left alone.
    upright = confusion(an_evaluation()).axes[0].get_ylim()
    strange = {"font.size": 30.0, "axes.grid": False, "figure.facecolor": "black", "image.origin": "lower"}
    with matplotlib.rc_context(strange):
        before = dict(matplotlib.rcParams)
        assert to_png(lr_finder(a_finding())) == to_png(figure)
        assert confusion(an_evaluation()).axes[0].get_ylim() == upright
        assert dict(matplotlib.rcParams) == before


def test_no_figure_needs_pyplot() -> None:
    rooms = "firstlight.figures.curves, firstlight.figures.images, firstlight.figures.augmentations"
    code = f"import sys, {rooms}; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_learning_curves_are_the_history_named_and_nothing_else() -> None:
    history = a_history(6)
    accuracy, loss, _ = learning_curves(history).axes
    pairs = itertools.product(((accuracy, "accuracy"), (loss, "loss")), ("train", "validation", "test"))
    for (axes, what), part in pairs:
        epochs, values = line(axes, part)
        assert epochs.tolist() == [1, 2, 3, 4, 5, 6]
        assert values.tolist() == history.column(f"{part}_{what}")
        low, high = axes.get_ylim()
        assert low <= values.min() and values.max() <= high
    everything = words_of(learning_curves(history, label_smoothing=0.2))
    assert f"test {history.epochs[-1].test_accuracy:.2%}" in everything
    assert any("label smoothing (0.2)" in words for words in everything)
    bare = learning_curves(a_history(4, parts=()))
    labels = {str(line.get_label()) for axes in bare.axes[:2] for line in axes.lines}
    assert {label for label in labels if not label.startswith("_")} == {"train"}
    assert not any("Test" in words or "smoothing" in words for words in words_of(bare))


def test_an_epoch_that_was_not_scored_is_passed_over_and_the_rate_is_drawn_by_step_or_epoch() -> None:
    epochs = list(a_history(5))
    epochs[2] = dataclasses.replace(epochs[2], test_loss=None, test_accuracy=None)
    axes = learning_curves(History(tuple(epochs))).axes[0]
    measured, values = line(axes, "test")
    assert measured.tolist() == [1, 2, 4, 5] and np.isfinite(values).all()
    markers = {drawn.get_label(): drawn.get_marker() for drawn in axes.lines}
    assert (markers["test"], markers["train"]) == ("o", ""), "what was scored is marked"
    schedule = Cycle(0.4, 0.004, 60, 19)
    epochs, rates = line(learning_curves(a_history(6), schedule).axes[2], "learning rate")
    assert rates.tolist() == [schedule(step) for step in range(60)]
    assert epochs[9] == 1.0 and epochs[-1] == 6.0 and epochs[int(rates.argmax())] == 2.0
    epochs, rates = line(learning_curves(a_history(3)).axes[2], "learning rate")
    assert (epochs.tolist(), rates.tolist()) == ([1, 2, 3], a_history(3).column("lr"))


def test_what_cannot_be_drawn_is_refused() -> None:
    samples, evaluation = some_samples(PARTS), an_evaluation()
    del samples["draws_1"]
    with pytest.raises(InputError, match="no learning curves"):
        learning_curves(History())
    with pytest.raises(InputError, match="lack draws_1"):
        augmentations_of(samples, PARTS)
    with pytest.raises(InputError, match="4 mistakes need as many maps, not 3 and 3"):
        gradcam(evaluation, *kept_images(evaluation), *maps_of(evaluation, 3), count=4)


def test_a_race_shows_its_trials_its_parabola_and_the_interval() -> None:
    trials = [Trial(rate, 85, score, 2.3) for rate, score in ((0.2, 1.4), (0.4, 1.3), (0.8, 1.35))]
    finding = decide(trials, 0.4, 2328, Calibration()).finding(trials, 300.0, 0.18)
    figure = lr_finder(finding)
    (axes,) = figure.axes
    assert line(axes, "held-out loss")[1].tolist() == [1.4, 1.3, 1.35]
    rates, heights = line(axes, "fitted parabola")
    # Between 0.4 and 0.8, nearer to 0.4.
    assert rates[heights.argmin()] == pytest.approx(0.4 * 2 ** (1 / 6), rel=0.05)
    assert "race, 3 trials, 18% of the run" in words_of(figure)
    # One that measured nothing is drawn too.
    lr_finder(dataclasses.replace(finding, rates=(), losses=(), smoothed=()))


def test_the_finder_shows_its_losses_and_marks_both_rates() -> None:
    finding = a_finding()
    figure = lr_finder(finding)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    for name, values in (("loss", finding.losses), ("smoothed loss", finding.smoothed)):
        rates, losses = line(axes, name)
        assert (tuple(rates), tuple(losses)) == (finding.rates, values)
    verticals = [float(line.get_xdata()[0]) for line in axes.lines if len(np.unique(line.get_xdata())) == 1]
    classic = [float(f"{rate:.1e}") for rate in classic_rates(finding.rates, finding.smoothed).values()]
    assert set(verticals) == {0.0018, 0.4, *classic}
    assert {"LRMIN 0.0018", "LRMAX 0.4"} <= set(words_of(figure))
    # A spike does not flatten the curve.
    losses = (*finding.losses[:30], 1e6, float("nan"), *finding.losses[32:])
    bottom, top = axes.get_ylim()
    low, high = lr_finder(a_finding(losses=losses)).axes[0].get_ylim()
    assert high - low < 1.5 * (top - bottom)
    assert low < min(finding.smoothed) and high > finding.smoothed[0]


def test_augmentations_show_pixel_for_pixel_what_the_network_saw_and_say_what_was_drawn() -> None:
    samples = some_samples(PARTS, EIGHT[:2])
    cropped = PARTS[0].apply(samples["images"], samples["draws_0"])
    flipped = PARTS[1].apply(cropped, samples["draws_1"])
    cut, grey = flipped.clone(), torch.tensor([[[round(255 * mean)]] for mean in MEAN])
    for image, (top, left) in zip(cut, samples["draws_2"].tolist(), strict=True):
        image[:, top : top + 8, left : left + 8] = grey
    expected = torch.cat([samples["images"], cropped, flipped, cut])
    for tile, image in zip(tiles_of(augmentations_of(samples, PARTS)), expected, strict=True):
        assert np.array_equal(tile, as_array(image))
    samples |= {"draws_0": torch.tensor([[3, 7], [0, 8]]), "draws_1": torch.tensor([[1], [0]])}
    words = set(words_of(augmentations_of(samples, PARTS)))
    assert {"top 3, left 7", "top 0, left 8", "flipped", "not flipped", "airplane", "automobile"} <= words
    assert {"Original", "Crop", "FlipLR", "Cutout", "padding reflect"} <= words
    assert caption(("angle",), [1]) == "angle 1"
    assert len(tiles_of(augmentations_of(samples, ()))) == 2
    # A replayed image is normalised once, even by two cutouts.
    parts = (Cutout(4), Cutout(6))
    samples = some_samples(parts)
    last = replay(samples, parts, MEAN, STD, CLASSES)[-1].images
    seen = normalise(samples["images"], MEAN, STD)
    for number, part in enumerate(parts):
        seen = part.apply(seen, samples[f"draws_{number}"])
    assert torch.equal(normalise(last, MEAN, STD)[seen != 0], seen[seen != 0])


@pytest.mark.parametrize("size", [28, 300])
def test_grey_images_of_any_size_are_shown_in_their_own_proportions(size: int) -> None:
    parts = (Crop(size - 4, 2), FlipLR(), Cutout(4))
    images = random_images(2, 1, size, size)
    figure = augmentations(some_samples(parts, images), parts, (0.5,), (0.2,), CLASSES)
    first = tiles_of(figure)[0]
    assert np.array_equal(first, as_array(images[0].expand(3, size, size)))
    original, cropped = (axes.get_position().width for axes in (figure.axes[0], figure.axes[2]))
    assert cropped / original == pytest.approx((size - 4) / size)
    evaluation = an_evaluation()
    figure = misclassified(evaluation, *kept_images(evaluation, channels=1, height=size, width=2 * size))
    box, (across, down) = figure.axes[0].get_position(), figure.get_size_inches()
    assert box.width * across == pytest.approx(2 * box.height * down)


def cells(figure: Figure) -> dict[tuple[int, int], str]:
    """Return what is written into the cells of a confusion matrix: (row, column) -> text."""
    texts = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in texts}


def test_the_confusion_matrix_colours_mistakes_by_share_and_names_classes_and_recall() -> None:
    evaluation = an_evaluation()
    figure = confusion(evaluation)
    drawn = figure.axes[0].images[0].get_array()
    counts = evaluation.confusion.numpy()
    shares = counts / counts.sum(1, keepdims=True)
    off = ~np.eye(10, dtype=bool)
    assert np.ma.getmaskarray(drawn).diagonal().all()
    assert np.array_equal(np.asarray(drawn)[off], shares[off])
    assert figure.axes[0].images[0].get_clim() == (0.0, shares[off].max())
    assert cells(figure) == {(i, j): str(counts[i, j]) for i, j in np.argwhere(counts).tolist()}
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert tuple(label.get_text() for label in labels) == CLASSES
    recalls = [f"{100 * float(score.recall or 0):.1f}%" for score in evaluation.per_class]
    assert [word for word in words_of(figure) if word in recalls][:10] == recalls
    unseen = Evaluation(("a", "b", "c"), torch.tensor([0, 1]), torch.eye(3)[[1, 1]], ["#0", "#1"])
    assert "no images" in words_of(confusion(unseen))
    for classes in (25, 26):
        figure = confusion(an_evaluation(tuple(f"class {k}" for k in range(classes)), 200, 6.0))
        assert bool(cells(figure)) is (classes == 25), "many classes leave the numbers out"
        assert len(figure.axes[0].get_yticklabels()) == classes


def test_misclassified_shows_the_worst_first_each_with_its_own_image_if_it_was_kept() -> None:
    evaluation = an_evaluation(sure=1.5)
    images, indices = kept_images(evaluation)
    figure = misclassified(evaluation, images, indices, count=12)
    words = words_of(figure)
    for tile, index in zip(tiles_of(figure), evaluation.mistakes[:12].tolist(), strict=True):
        assert np.array_equal(tile, as_array(images[indices.tolist().index(index)]))
        label = int(evaluation.predictions[index])
        confidence = float(evaluation.probabilities[index, label])
        assert f"{CLASSES[label]} ({confidence:.0%})" in words and f"#{index}" in words
    others = indices != evaluation.mistakes[0]
    figure = misclassified(evaluation, images[others], indices[others], count=4)
    assert len(tiles_of(figure)) == 4 and f"#{evaluation.mistakes[0]}" not in words_of(figure)
    none = misclassified(evaluation, images[:0], indices[:0])
    assert "Images of the mistakes are not kept." in words_of(none)


def test_no_mistakes_are_words_and_no_picture() -> None:
    evaluation = an_evaluation(sure=60.0)
    images, indices = kept_images(evaluation)
    nothing = Heatmaps("layer2", torch.zeros(0, 8, 8), indices)
    maps = gradcam(evaluation, images, indices, nothing, nothing)
    for figure in (misclassified(evaluation, images, indices), maps):
        assert not tiles_of(figure)
        assert "No mistakes: all 120 images are classified right." in words_of(figure)
    assert "0 mistakes on 120 images" in words_of(confusion(evaluation))


def test_gradcam_lays_both_maps_over_the_image_on_one_scale() -> None:
    evaluation = an_evaluation()
    images, indices = kept_images(evaluation)
    predicted, true = maps_of(evaluation, 4)
    figure = gradcam(evaluation, images, indices, predicted, true, count=4)
    tiles = tiles_of(figure)
    assert len(tiles) == 4 * 3 + 1  # and the scale
    for number, index in enumerate(evaluation.mistakes[:4].tolist()):
        image = as_array(images[indices.tolist().index(index)])
        strongest = max(predicted.maps[number].max(), true.maps[number].max())
        assert np.array_equal(tiles[3 * number], image)
        assert np.array_equal(tiles[3 * number + 1], overlay(image, predicted.maps[number] / strongest))
        assert np.array_equal(tiles[3 * number + 2], overlay(image, true.maps[number] / strongest))
    assert any("layer2, 8×8" in words for words in words_of(figure))


def test_no_evidence_is_words_or_leaves_a_pixel_grey_and_the_strongest_colours_it() -> None:
    figure = gradcam_of(an_evaluation(), 4, empty=(0, 2))
    assert words_of(figure).count("no positive\nevidence") == 2
    assert len(tiles_of(figure)) == 4 * 3 + 1 - 2
    image = np.full((8, 8, 3), (200, 30, 90), dtype=np.uint8)
    without, most = overlay(image, torch.zeros(4, 4)), overlay(image, torch.ones(4, 4))
    assert (without == without[..., :1]).all()
    assert (most.max(-1).astype(int) - most.min(-1) > 50).all()


def test_labels_keep_order_distance_and_frame_and_only_long_names_are_shortened() -> None:
    assert keep_apart([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])
    moved = keep_apart([0.97, 0.98, 0.5, 0.99], 0.1)
    assert moved[0] < moved[1] < moved[3] and moved[2] == 0.5
    assert max(moved) <= 1.0 + 1e-12
    assert min(np.diff(sorted(moved))) == pytest.approx(0.1)
    assert keep_apart([], 0.1) == []
    assert fitted("cat", 1.0) == "cat"
    assert fitted("two\nlines\x07", 1.0) == "two lines"
    short = fitted("the quick brown fox jumps over the lazy dog", 1.0)
    assert short.endswith("…") and 0.8 < width_of(short) <= 1.0
