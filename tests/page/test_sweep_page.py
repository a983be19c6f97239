"""The page of a sweep: what it says, its picture, and that it asks nothing of any network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from firstlight.page.sweep_page import parallel_coordinates, write_sweep_page
from firstlight.record.sweep import Cell, Sweep

RATES, SIDES = ("0.1", "0.4", "1.6"), ("24,32", "32")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_sweep(folder: Path, seeds: int = 3, rates: tuple[str, ...] = RATES) -> Sweep:
    """Return a sweep in which 0.4 is best by validation, 0.1 by test, and 1.6 has a seed that failed."""
    cells = []
    for number, (rate, sides) in enumerate([(rate, sides) for rate in rates for sides in SIDES], 1):
        for seed in range(seeds):
            values = {"peak_lr": rate, "sides": sides, "note": "<b>&"}
            accuracy = (0.92 if rate == "0.4" else 0.85) + 0.001 * (seed * number % 4) + 0.0001 * number
            cell = Cell(values, seed, f"setting-{number}/seed-{seed}", accuracy, 1 - accuracy, 3.0, 1, "chip")
            bad = Cell(values, seed, cell.folder, failed="training diverged <i>")
            cells.append(bad if (rate, seed) == ("1.6", 1) else cell)
    return Sweep(folder, tuple(cells))


def test_the_page_says_what_is_best_what_is_noise_and_what_failed(tmp_path: Path) -> None:
    text = write_sweep_page(make_sweep(tmp_path), "cifar10.fast").read()
    assert "Best by validation: peak_lr=0.4 sides=24,32; better than" in text
    assert "The same in all: note=&lt;b&gt;&amp;." in text and "<b>&" not in text
    assert "1 of 3 failed: training diverged &lt;i&gt;" in text and "may be noise" in text
    assert 'href="setting-1/seed-0/report.html"' in text and 'href="setting-5/seed-1/report.html"' not in text
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text


def test_lines_go_through_the_ranks_of_their_values_to_their_accuracy(tmp_path: Path) -> None:
    axes, lines = parallel_coordinates(make_sweep(tmp_path))
    assert [axis.name for axis in axes] == ["peak_lr", "sides", "validation accuracy"]
    (low, bottom), (high, top) = axes[0].ticks
    assert (low, high) == (
        "0.1",
        "0.4",
    ) and bottom > top  # numbers rise upward; one failed setting is left out
    assert len(lines) == 4 and [line.best for line in lines] == [False, False, False, True]
    heights = [float(point.split(",")[1]) for point in lines[-1].points.split()]
    assert heights[0] == heights[2] == top and lines[-1].strength == 1.0
    assert parallel_coordinates(Sweep(tmp_path, ())) == ([], [])
    (single, *_), _ = parallel_coordinates(make_sweep(tmp_path, seeds=1, rates=("0.1",)))
    assert single.name == "sides"


def test_a_page_of_one_seed_claims_no_difference(tmp_path: Path) -> None:
    text = write_sweep_page(make_sweep(tmp_path, seeds=1), "cifar10.fast").read()
    assert "one seed does not say whether by noise" in text and "p, corrected" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_read_it(tmp_path: Path, scheme: Any, width: int) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: on Debian, apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page, heard = write_sweep_page(make_sweep(tmp_path), "cifar10.fast"), list[str]()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        strict = browser.new_page()
        strict.on("console", lambda message: heard.append(message.text))
        strict.on("request", lambda request: heard.append(request.url))
        strict.goto(page.path.as_uri())
        tab = browser.new_page(
            bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 1200}
        )
        tab.goto(page.path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        found = axe.run(tab).response["violations"]
        tab.screenshot(path=tmp_path / f"{scheme}-{width}.png")
        browser.close()
    assert heard == [page.path.as_uri()]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
