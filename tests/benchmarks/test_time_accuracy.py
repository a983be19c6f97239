"""The picture of time and accuracy shows what the rows say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.publish import time_accuracy as picture
from benchmarks.publish.rows import read_tables
from firstlight.insight.intervals import Spread

CPU, GPU = "Some CPU, 2 cores", "NVIDIA H100 80GB HBM3"


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


def tables(*runs: dict[str, str], reference: tuple[tuple[float, str], ...] = ((200, CPU),)) -> Any:
    """Return tables of runs, and of the yardstick's seconds and hardware."""
    rows = [{"hardware": hardware, "r_seconds": str(seconds)} for seconds, hardware in reference]
    return {"runs": list(runs), "gpu": [], "reference": rows}


def test_runs_become_two_points_with_their_interval() -> None:
    rows = [row(0.93, 0.94, 900, tta_seconds=10), row(0.94, 0.95, 1100), row(0.941, 0.946, 1000)]
    plain, augmented = picture.our_points(tables(*rows))
    assert (plain.name, plain.kind, plain.tta, augmented.tta) == ("cifar10.assignment", "ours", False, True)
    spread = Spread((0.93, 0.94, 0.941))
    assert plain.accuracy == pytest.approx(spread.mean) and plain.interval == spread.interval
    assert plain.seconds == pytest.approx(1000) and augmented.seconds == pytest.approx(1000 + 10 / 3)
    assert augmented.accuracy == pytest.approx((0.94 + 0.95 + 0.946) / 3)
    assert plain.detail == "24 epochs, n = 3"
    plain, augmented = picture.our_points(tables(rows[1]))
    assert plain.interval == (pytest.approx(0.935), pytest.approx(0.945)), "over images, without TTA alone"
    assert (augmented.interval, plain.detail) == (None, "24 epochs, one seed")


def test_recipes_epochs_and_hardware_are_told_apart_and_other_data_is_left_out() -> None:
    rows = [
        row(0.94, 0.95, 900),
        row(0.90, 0.91, 300, epochs=10),
        row(0.93, 0.94, 300, recipe="cifar10.fast", epochs=8),
        row(0.93, 0.94, 2.5, hardware=GPU, device="cuda"),
        row(0.99, 0.99, 30, recipe="shapes.demo"),
        {"recipe": "cifar10.fast", "hardware": GPU, "test_accuracy": "", "clock_seconds": "2"},
    ]
    points = picture.our_points(tables(*rows))
    assert [(point.name, point.detail) for point in points if not point.tta] == [
        ("cifar10.assignment", "24 epochs, one seed"),
        ("cifar10.assignment", "10 epochs, one seed"),
        ("cifar10.fast", "8 epochs, one seed"),
        ("cifar10.assignment", "24 epochs, one seed, H100"),
    ]


def test_the_larger_group_of_found_and_given_rates_stands_at_a_tie_the_newer() -> None:
    found, given = row(0.94, 0.95, 5000, rates=""), row(0.93, 0.94, 2000)
    for runs, seconds in (([found, given], 2000), ([given, found], 5000), ([found, found, given], 5000)):
        assert picture.our_points(tables(*runs))[0].seconds == seconds


def test_the_cold_run_counts_for_accuracy_and_not_for_time() -> None:
    home, gpu = row(0.94, 0.95, 900), {"hardware": GPU, "device": "cuda"}
    rows = [row(0.93, 0.94, 9, start="cold", **gpu), row(0.95, 0.96, 3, start="warm", **gpu)]
    plain = picture.our_points(tables(home, *rows))[2]
    assert plain.seconds == 3 and plain.accuracy == pytest.approx(0.94)
    assert picture.our_points(tables(home, rows[0]))[2].seconds == 9


def test_the_stock_loop_takes_24_r_at_the_assignments_accuracy_on_the_same_hardware() -> None:
    rows = [row(0.94, 0.95, 900), row(0.90, 0.91, 1, hardware=GPU, device="cuda")]
    rows += [row(0.92, 0.93, 300, recipe="cifar10.fast")]
    reference = (100.0, CPU), (200.0, CPU)
    both = tables(*rows, reference=reference)
    plain, augmented = picture.stock_points(both)
    assert (plain.seconds, augmented.seconds) == (4800, 4800), "the newest row counts"
    assert (plain.accuracy, augmented.accuracy) == (0.94, 0.95)
    assert plain.interval is None and plain.kind == "stock"
    elsewhere = row(0.92, 0.93, 9, recipe="cifar10.fast", hardware="Another CPU")
    more = tables(*rows, elsewhere, reference=(*reference, (50, "Another CPU")))
    assert picture.points(more) == picture.points(both), "one CPU is shown"
    xeon = "Intel(R) Xeon(R) Processor, 2 cores"
    only = row(0.95, 0.96, 300, recipe="cifar10.fast_plus", hardware=xeon)
    more = picture.points(tables(*rows, only, reference=(*reference, (50, xeon))))
    named = [point for point in more if point.name == "cifar10.fast_plus"]
    assert [point.seconds for point in named] == [300, 300], "what only another CPU trained"
    assert {point.detail for point in named} == {"24 epochs, one seed, Intel Xeon, 6.0 R there"}


def marks(sheet: Any) -> list[tuple[float, float, bool]]:
    """Return time, percent and whether it is filled of every mark of the picture."""
    lines = [line for line in sheet.axes[0].get_lines() if line.get_marker() in ("o", "D")]
    return [(*line.get_xydata()[0], line.get_markerfacecolor() == line.get_color()) for line in lines]


def test_the_published_picture_shows_every_point_and_words_hide_no_mark_and_no_other_words() -> None:
    published = read_tables()
    shown, measured = picture.points(published), picture.yardstick(published)
    sheet = picture.time_accuracy(shown, measured)
    axes = sheet.axes[0]
    assert marks(sheet) == [
        (pytest.approx(point.seconds), pytest.approx(100 * point.accuracy), not point.tta) for point in shown
    ]
    text = "\n".join(each.get_text() for each in (*sheet.texts, *axes.texts))
    assert all(point.name in text and point.detail in text for point in shown)
    assert f"{measured[0]}: {measured[1]:.0f} s" in text and "24 R" in text
    low, high = axes.get_ylim()
    ends = [100 * end for point in shown for end in point.interval or (point.accuracy,)]
    assert low <= min(ends) and max(ends) <= high
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index]), axes.texts[index]
        for seconds, percent, _ in marks(sheet):
            assert not box.contains(*axes.transData.transform((seconds, percent)))
