"""Properties that hold for any value: schedule, augmentation, splits, serialisation, run folder, pictures."""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import image_set

from firstlight.data.augment import Crop, Cutout, FlipLR, Jitter
from firstlight.data.image_files import open_upright
from firstlight.errors import InputError, printable
from firstlight.machine.streams import stream
from firstlight.recipes import named
from firstlight.record.recipe_file import recipe_from_json
from firstlight.record.run_folder import RunFolder
from firstlight.record.values import parse, read
from firstlight.training.history import Epoch, History
from firstlight.training.schedule import OneCycle

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
given = hypothesis.given
quick = hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)

RATES = st.floats(1e-6, 10)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@quick
@given(RATES, st.floats(0, 1), st.integers(1, 40), st.integers(1, 30), st.floats(0, 1))
def test_a_schedule_stays_between_its_rates_and_ends_at_the_lowest(
    peak: float, share: float, epochs: int, steps: int, place: float
) -> None:
    low = max(peak * share, 1e-9)
    schedule = OneCycle(peak_epoch=place * epochs, peak_lr=peak, min_lr=low)
    rate = schedule.steps(epochs, steps)
    rates = [rate(step) for step in range(epochs * steps)]
    assert all(low * (1 - 1e-9) <= each <= peak * (1 + 1e-9) for each in rates)
    if epochs * steps > 1 and place < 1:
        assert math.isclose(rates[-1], low, rel_tol=1e-6) or rates[-1] <= peak


@quick
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 8), st.integers(0, 2**32), st.booleans())
def test_a_crop_is_the_window_of_the_padded_image(
    height: int, width: int, pad: int, seed: int, zero: bool
) -> None:
    crop = Crop(None, pad, "zero" if zero else "reflect")
    images = torch.randint(0, 256, (3, 2, height, width), generator=stream(seed, "x"), dtype=torch.uint8)
    try:
        draws = crop.sample(torch.arange(3), height, width, lambda epoch: stream(seed, epoch), 0)
    except InputError:
        assert pad >= min(height, width)
        return
    mode: Any = {"mode": "constant"} if zero else {"mode": "reflect"}
    for image, (top, left), out in zip(images, draws.tolist(), crop.apply(images, draws), strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), **mode)
        assert (padded[:, top : top + height, left : left + width] == out.numpy()).all()


@quick
@given(st.integers(0, 2**32), st.integers(0, 5), st.booleans())
def test_draws_depend_on_seed_and_epoch_alone_and_keep_the_size(
    seed: int, epoch: int, alternate: bool
) -> None:
    images = image_set(6).images
    for part in (FlipLR(alternate), Cutout(3), Jitter(0.1, 0.1), Crop(8, 2)):
        both = [part.sample(torch.arange(6), 8, 8, lambda e: stream(seed, e), epoch) for _ in range(2)]
        assert torch.equal(*both)
        if not part.on_normalised:
            assert part.apply(images, both[0]).shape == images.shape


@quick
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 70), st.integers(0, 2**32))
def test_a_split_is_stratified_and_loses_no_image(count: int, classes: int, held: int, seed: int) -> None:
    images = image_set(count, classes=classes)
    if held >= count:
        with pytest.raises(InputError):
            images.split(held, stream(seed, "split"))
        return
    rest, out = images.split(held, stream(seed, "split"))
    assert len(out) == held and sorted([*rest.names, *out.names]) == sorted(images.names)
    for label in range(classes):
        share = held * int((images.labels == label).sum()) / count
        assert abs(int((out.labels == label).sum()) - share) <= 1


@quick
@given(RATES, st.integers(1, 500), st.integers(0, 2**62), st.integers(1, 64), st.booleans())
def test_a_recipe_comes_back_from_its_file(
    peak: float, epochs: int, seed: int, width: int, plain: bool
) -> None:
    recipe = named("shapes.demo" if plain else "cifar10.fast").over(epochs)
    recipe = recipe.replace(seed=seed, peak_lr=peak, min_lr=peak / 7, **({"width": width} if plain else {}))
    assert recipe_from_json(parse(json.dumps(recipe.to_json()).encode(), "x")) == recipe


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(allow_nan=False))
def test_a_history_comes_back_from_its_file(accuracies: list[float], loss: float) -> None:
    epochs = [
        Epoch(number, 10 * number, 0.1, loss, accuracy, 5.0, number)
        for number, accuracy in enumerate(accuracies, 1)
    ]
    history = History(tuple(epochs))
    with tempfile.TemporaryDirectory() as place:
        from firstlight.record import results

        folder = RunFolder(Path(place))
        folder.write("history.jsonl", history.to_jsonl())
        assert results.history(folder, "history.jsonl").to_json() == history.to_json()


@quick
@given(JSON)
def test_any_json_is_a_recipe_and_a_dataclass_or_refused_in_one_line(values: Any) -> None:
    for what in (
        lambda: recipe_from_json(values if isinstance(values, dict) else {"name": values}),
        lambda: recipe_from_json({**named("shapes.demo").to_json(), "model": values}),
        lambda: recipe_from_json({**named("shapes.demo").to_json(), "epochs": values}),
        lambda: read(Epoch, values, "row"),
        lambda: read(Epoch, {"epoch": values, "step": values, "lr": values}, "row"),
    ):
        try:
            what()
        except InputError as error:
            assert printable(error.message) == error.message and len(error.message) < 2000


@quick
@given(st.binary(max_size=300))
def test_any_bytes_of_a_run_file_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.write("x", data)
        assert folder.read_bytes("x", 300) == data
        for reading in (folder.read_json, folder.read_tensors):
            try:
                reading("x")
            except InputError as error:
                assert printable(error.message) == error.message


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@quick
@given(
    st.sampled_from(["L", "RGB", "LA", "RGBA", "1", "P", "I;16"]),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(sorted(TURNS)),
    st.integers(0, 2**32),
)
def test_a_picture_of_any_mode_size_and_orientation_is_read_as_a_naive_reader_does(
    mode: str, width: int, height: int, turn: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    channels = {"RGB": 3, "LA": 2, "RGBA": 4}.get(mode, 1)
    values = draw.integers(0, 256, (height, width, channels)).astype(np.uint8)
    plain = values[..., 0]
    expected: Any
    match mode:
        case "1":
            picture, expected = Image.fromarray(plain > 127), (plain > 127) * 255
        case "P":
            picture = Image.fromarray(plain, "L").convert("P")
            expected = plain
        case "I;16":
            picture, expected = Image.fromarray(plain.astype(np.uint16) * 257), plain
        case "LA" | "RGBA":
            picture = Image.fromarray(values, mode)
            alpha = values[..., -1:] / 255
            expected = values[..., :-1] * alpha + 255 * (1 - alpha)  # the ground is white
        case "L":
            picture, expected = Image.fromarray(plain, mode), plain
        case _:
            picture, expected = Image.fromarray(values, mode), values
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "picture.png")
        path.write_bytes(file.getvalue())
        result = np.asarray(open_upright(path)).astype(float)
    turned = TURNS[turn](np.asarray(expected, dtype=float).reshape(height, width, -1))
    result = result.reshape(*result.shape[:2], -1)
    assert result.shape[:2] == turned.shape[:2]
    assert np.abs(result.mean(2, keepdims=True) - turned.mean(2, keepdims=True)).max() <= 1.01
