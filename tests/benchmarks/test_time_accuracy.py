"""The picture of time and accuracy shows what the rows say."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from firstlight.insight.intervals import Spread

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU, GPU = "Some CPU, 2 cores", "NVIDIA H100 80GB HBM3"


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        module = importlib.import_module("time_accuracy")
    yield module
    for name in ("time_accuracy", "rows"):
        sys.modules.pop(name, None)


def row(accuracy: float, tta: float, seconds: float, **changed: Any) -> dict[str, str]:
    made = {
        "recipe": "cifar10.assignment",
        "epochs": 24,
        "hardware": CPU,
        "precision": "bf16",
        "device": "cpu",
        "rates": "given",
        "test_accuracy": accuracy,
        "test_accuracy_tta": tta,
        "test_low_95": accuracy - 0.005,
        "test_high_95": accuracy + 0.005,
        "train_seconds": seconds,
    }
    return {key: str(value) for key, value in {**made, **changed}.items()}


def measured(seconds: float, hardware: str = CPU) -> dict[str, str]:
    return {"script": "benchmarks/reference.py", "hardware": hardware, "r_seconds": str(seconds)}


def test_seeds_become_two_points_with_their_interval(picture: ModuleType) -> None:
    rows = [row(0.93, 0.94, 900, tta_seconds=10), row(0.94, 0.95, 1100), row(0.941, 0.946, 1000)]
    plain, mirrored = picture.our_points(rows)
    assert (plain.name, plain.kind, plain.tta, mirrored.tta) == ("cifar10.assignment", "ours", False, True)
    spread = Spread((0.93, 0.94, 0.941))
    assert plain.accuracy == pytest.approx(spread.mean) and (plain.low, plain.high) == spread.interval
    assert plain.seconds == pytest.approx(1000) and mirrored.seconds == pytest.approx(1000 + 10 / 3)
    assert mirrored.accuracy == pytest.approx((0.94 + 0.95 + 0.946) / 3)
    assert plain.detail == "24 epochs, n = 3"


def test_one_seed_has_the_interval_over_images_without_tta_alone(picture: ModuleType) -> None:
    plain, mirrored = picture.our_points([row(0.94, 0.95, 900)])
    assert (plain.low, plain.high) == (pytest.approx(0.935), pytest.approx(0.945))
    assert (mirrored.low, mirrored.high, plain.detail) == (None, None, "24 epochs, one seed")


def test_recipes_epochs_and_hardware_are_told_apart_and_other_data_is_left_out(picture: ModuleType) -> None:
    rows = [
        row(0.94, 0.95, 900),
        row(0.90, 0.91, 300, epochs=10),
        row(0.93, 0.94, 300, recipe="cifar10.fast", epochs=8),
        row(0.93, 0.94, 2.5, hardware=GPU, device="cuda"),
        row(0.99, 0.99, 30, recipe="shapes.demo"),
        {"recipe": "cifar10.fast", "hardware": GPU, "test_accuracy": "", "clock_seconds": "2"},
        measured(200),
    ]
    found = [(point.name, point.detail) for point in picture.our_points(rows) if not point.tta]
    assert found == [
        ("cifar10.assignment", "24 epochs, one seed"),
        ("cifar10.assignment", "10 epochs, one seed"),
        ("cifar10.fast", "8 epochs, one seed"),
        ("cifar10.assignment", "24 epochs, one seed, H100"),
    ]


def test_the_larger_group_of_found_and_given_rates_stands_at_a_tie_the_newer(picture: ModuleType) -> None:
    found, given = row(0.94, 0.95, 5000, rates=""), row(0.93, 0.94, 2000)
    assert picture.our_points([found, given])[0].seconds == 2000
    assert picture.our_points([given, found])[0].seconds == 5000
    assert picture.our_points([found, found, given])[0].seconds == 5000


def test_the_cold_run_counts_for_accuracy_and_not_for_time(picture: ModuleType) -> None:
    gpu = {"hardware": GPU, "device": "cuda"}
    rows = [row(0.93, 0.94, 9, start="cold", **gpu), row(0.95, 0.96, 3, start="warm", **gpu)]
    plain, _ = picture.our_points(rows)
    assert plain.seconds == 3 and plain.accuracy == pytest.approx(0.94)
    assert picture.our_points(rows[:1])[0].seconds == 9


def test_the_stock_loop_takes_24_r_at_the_assignments_accuracy_on_the_same_hardware(
    picture: ModuleType,
) -> None:
    rows = [row(0.94, 0.95, 900), row(0.90, 0.91, 1, hardware=GPU, device="cuda"), measured(100)]
    rows += [row(0.92, 0.93, 300, recipe="cifar10.fast"), measured(200)]
    plain, mirrored = picture.stock_points(rows)
    assert (plain.seconds, mirrored.seconds) == (4800, 4800), "the newest row counts"
    assert (plain.accuracy, mirrored.accuracy) == (0.94, 0.95)
    assert plain.low is None and plain.kind == "stock"
    elsewhere = [
        measured(50, "Another CPU"),
        row(0.92, 0.93, 9, recipe="cifar10.fast", hardware="Another CPU"),
    ]
    assert picture.points([*rows, *elsewhere]) == picture.points(rows), "one CPU is shown"
    only = row(0.95, 0.96, 300, recipe="cifar10.fast_plus", hardware="Intel(R) Xeon(R) Processor, 2 cores")
    more = picture.points([*rows, measured(50, only["hardware"]), only])
    told = [point for point in more if point.name == "cifar10.fast_plus"]
    assert [point.seconds for point in told] == [300, 300], "what only another CPU trained"
    assert {point.detail for point in told} == {"24 epochs, one seed, Intel Xeon, 6.0 R there"}
    assert picture.stock_points(rows[:2]) == [] and picture.stock_points([measured(50)]) == []


def test_published_figures_name_their_hardware_and_source(picture: ModuleType) -> None:
    assert all(source and hardware for *_, hardware, source in picture.PUBLISHED)
    for point in picture.published_points():
        assert point.kind == "published" and point.detail and point.seconds > 0 and 0.9 < point.accuracy < 1
    assert picture.points([]) == picture.published_points()


def marks(sheet: Any) -> list[tuple[float, float, bool]]:
    """Return time, percent and whether it is filled of every mark of the picture."""
    axes = sheet.axes[0]
    return [
        (
            float(line.get_xdata()[0]),
            float(line.get_ydata()[0]),
            line.get_markerfacecolor() == line.get_color(),
        )
        for line in axes.get_lines()
        if line.get_marker() in ("o", "D")
    ]


def test_every_point_is_drawn_filled_without_tta_and_named(picture: ModuleType) -> None:
    rows = [row(0.93, 0.94, 900), row(0.94, 0.95, 1100), measured(220)]
    rows += [row(0.92, 0.941, 300, recipe="cifar10.fast", epochs=8)]
    shown = picture.points(rows)
    sheet = picture.time_accuracy(shown, picture.yardstick(rows))
    assert marks(sheet) == [
        (pytest.approx(point.seconds), pytest.approx(100 * point.accuracy), not point.tta) for point in shown
    ]
    said = [text.get_text() for text in sheet.texts]
    for point in shown:
        assert point.name in said and point.detail in said
    assert any("220 s" in text and CPU in text for text in said) and any("24 R" in text for text in said)
    low, high = sheet.axes[0].get_ylim()
    assert low <= 100 * min(p.low or p.accuracy for p in shown)
    assert high >= 100 * max(p.high or p.accuracy for p in shown)


def test_without_rows_the_published_figures_are_drawn_alone(picture: ModuleType, tmp_path: Path) -> None:
    sheet = picture.time_accuracy(picture.points([]), None)
    assert len(marks(sheet)) == len(picture.PUBLISHED)
    assert not any("stock" in text.get_text().lower() for text in sheet.texts)
    picture.main(["--out", str(tmp_path / "drawn.png")])
    assert (tmp_path / "drawn.png").read_bytes()[:4] == b"\x89PNG"


def test_words_hide_no_mark_where_there_is_room(picture: ModuleType) -> None:
    box = (2.0, 2.0, 2.2, 2.2)
    x, y, _ = picture._room([(2.1, 2.1)], 1.0, 0.3, [box, (2.2, 1.9, 3.6, 2.3)])
    assert picture._hidden(x, y, 1.0, 0.3, [box, (2.2, 1.9, 3.6, 2.3)]) == 0
    assert picture._hidden(1.5, 1.9, 1.0, 0.3, [box]) == pytest.approx(0.04)
