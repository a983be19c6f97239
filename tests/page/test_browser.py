"""The page in a browser: what a click shows, what the keyboard does, and that nothing leaves the file."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_folder import EVIL, make_run

import firstlight
from firstlight.insight.evaluation import Evaluation
from firstlight.page.page import write_page
from firstlight.record.record import Record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here: on Debian, apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright, which is not here")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    path = tmp_path_factory.mktemp("run")
    evaluation = make_run(path)
    return write_page(Record.open(path)).path, evaluation


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium refuses its own sandbox to root, who runs tests in a container.
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, written: tuple[Path, Evaluation]) -> Iterator[Any]:
    """Open the page; in the end nothing may have been said, asked for or gone wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, heard = context.new_page(), list[str]()
    tab.on("console", lambda message: heard.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: heard.append(f"request: {request.url[:60]}"))
    tab.goto(written[0].as_uri())
    tab.wait_for_selector("html.ready #gallery li")
    yield tab
    context.close()
    assert [words for words in heard if not words.startswith(("request: file:", "request: data:"))] == []


def shown(tab: Any) -> list[int]:
    """Return the places in the test set of the images that the gallery shows, in their order."""
    while tab.locator("#more").is_visible():
        tab.locator("#more").click()
    cards = tab.locator("#gallery button")
    return list(map(int, cards.evaluate_all("all => all.map(one => one.dataset.index)")))


def test_a_cell_shows_exactly_its_images(page: Any, written: tuple[Path, Evaluation]) -> None:
    evaluation = written[1]
    table = evaluation.confusion.clone().fill_diagonal_(0)
    count = len(evaluation.classes)
    cells = [divmod(int(place), count) for place in table.flatten().argsort(descending=True)[:5]]
    for truth, predicted in cells:
        cell = page.locator(f'#matrix button[data-true="{truth}"][data-predicted="{predicted}"]')
        assert cell.inner_text() == str(int(table[truth, predicted]))
        cell.click()
        both = (evaluation.labels == truth) & (evaluation.predictions == predicted)
        expected = [i for i in evaluation.mistakes.tolist() if both[i]]
        assert shown(page) == expected
        assert cell.get_attribute("aria-pressed") == "true"
        assert page.locator("#extent").inner_text().startswith(f"{len(expected)} mistakes")
    # A cell of the diagonal shows right answers.
    page.locator('#matrix button[data-true="3"][data-predicted="3"]').click()
    right = ((evaluation.labels == 3) & (evaluation.predictions == 3)).nonzero().flatten().tolist()
    assert sorted(shown(page)) == right[:30]


def test_sorting_filters_and_search(page: Any, written: tuple[Path, Evaluation]) -> None:
    evaluation = written[1]
    wrong = evaluation.mistakes.tolist()
    assert shown(page) == wrong
    sure = evaluation.probabilities.amax(1)
    for order, key in (("sure", lambda i: -sure[i]), ("unsure", lambda i: sure[i]), ("index", lambda i: i)):
        page.locator("[name=sort]").select_option(order)
        keys = [key(i) for i in shown(page)]
        assert sorted(shown(page)) == sorted(wrong)
        assert all(float(one) <= float(other) + 2e-4 for one, other in itertools.pairwise(keys))
    page.locator("button[type=reset]").click()
    page.locator("[name=truth]").select_option("0")
    assert shown(page) == [i for i in wrong if evaluation.labels[i] == 0]
    page.locator("[name=predicted]").select_option("2")
    assert shown(page) == [i for i in wrong if (evaluation.labels[i], evaluation.predictions[i]) == (0, 2)]
    page.locator("button[type=reset]").click()
    assert shown(page) == wrong
    wanted = wrong[7]
    page.locator("[name=text]").fill(f"\"{wanted}'")
    assert shown(page) == [wanted]
    page.locator("[name=text]").fill(evaluation.classes[4].upper())
    assert shown(page) == [i for i in wrong if 4 in (evaluation.labels[i], evaluation.predictions[i])]
    page.locator("[name=text]").fill("no such name")
    assert shown(page) == [] and page.locator("#extent").inner_text().startswith("No mistakes")


def test_enlarging_by_mouse_and_by_keyboard(page: Any, written: tuple[Path, Evaluation]) -> None:
    evaluation = written[1]
    wrong, classes = evaluation.mistakes.tolist(), evaluation.classes
    dialog, facts = page.locator("#enlarged"), page.locator("#enlarged-facts")
    page.locator("#gallery button").nth(2).click()
    assert dialog.is_visible()
    predicted, truth = classes[evaluation.predictions[wrong[2]]], classes[evaluation.labels[wrong[2]]]
    for words in (f"#{wrong[2]} ", f"Predicted: {predicted}", f"true: {truth}"):
        assert words in facts.inner_text()
    page.locator("#close").click()
    assert not dialog.is_visible()

    page.locator("#gallery button").nth(0).focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible() and page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowRight")
    assert f"#{wrong[1]} " in facts.inner_text()
    page.keyboard.press("ArrowLeft")
    assert f"#{wrong[0]} " in facts.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # The dialog says that it is closed a moment after it is, and the focus follows.
    page.wait_for_function("index => document.activeElement.dataset.index === index", arg=str(wrong[1]))


def picture(tab: Any, view: str) -> str:
    return str(tab.evaluate("id => document.querySelector(`#${id} canvas`).toDataURL()", view))


def test_the_slider_and_the_grid_change_the_heat_alone(page: Any) -> None:
    page.locator("#gallery button").first.click()
    before = {view: picture(page, view) for view in ("view-image", "view-predicted")}
    assert before["view-predicted"] != before["view-image"]
    page.locator("#opacity").fill("30")
    fainter = picture(page, "view-predicted")
    assert fainter not in before.values()
    page.locator("#smooth").uncheck()
    assert picture(page, "view-predicted") not in (fainter, *before.values())
    page.locator("#opacity").fill("0")
    assert picture(page, "view-predicted") == before["view-image"] == picture(page, "view-image")


def test_hostile_names_are_words(page: Any, written: tuple[Path, Evaluation]) -> None:
    assert page.locator('img[src="x"]').count() == 0
    assert page.locator("script").count() == 4
    page.locator("#gallery button").first.click()
    assert page.locator("#enlarged-title").inner_text().startswith(f'photos/{EVIL}/"')
    assert EVIL in page.locator("#matrix").inner_text()
    command = page.locator("#command").inner_text()  # built from the recipe, whatever the folder says
    assert command.startswith("firstlight train shapes.demo") and EVIL not in command


def test_values_are_read_off_by_pointer_and_by_keyboard(page: Any) -> None:
    chart = page.locator("#accuracy svg")
    chart.scroll_into_view_if_needed()
    reading = page.locator("#accuracy .reading")
    assert "90.00%" in reading.inner_text() and "epoch" not in reading.inner_text()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.09, box["y"] + box["height"] / 2)
    assert "epoch 1" in reading.inner_text() and "30.00%" in reading.inner_text()
    page.mouse.move(0, 0)
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert "epoch 2" in reading.inner_text() and "60.00%" in reading.inner_text()


def test_the_table_of_classes_sorts(page: Any, written: tuple[Path, Evaluation]) -> None:
    scores = written[1].per_class
    recalls = {score.name: round(score.recall, 6) for score in scores}
    for falling in (False, True):
        page.locator("#classes th button", has_text="Recall").click()
        names = page.locator("#classes tbody tr th").all_inner_texts()
        assert [recalls[name] for name in names] == sorted(recalls.values(), reverse=falling)
    assert page.locator("#classes th[aria-sort=descending]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_use_it(browser: Any, written: tuple[Path, Evaluation], scheme: str, width: int) -> None:
    tab = reachable(browser, scheme, width)
    tab.goto(written[0].as_uri())
    tab.wait_for_selector("#gallery li")
    assert serious_violations(tab) == []
    tab.locator("#gallery button").first.click()
    assert serious_violations(tab) == []
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_use_the_card_of_a_network_of_the_package(
    browser: Any, scheme: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIRSTLIGHT_DATA", raising=False)
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    page = firstlight.report("pretrained:cifar10")
    tab = reachable(browser, scheme, width)
    tab.goto(page.path.absolute().as_uri())
    tab.wait_for_selector("html.ready")
    assert serious_violations(tab) == []
    tab.close()


def reachable(browser: Any, scheme: str, width: int) -> Any:
    """Open a tab in which axe runs: the policy of the page would keep it out as well."""
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    size = {"width": width, "height": 800}
    return browser.new_page(bypass_csp=True, color_scheme=scheme, viewport=size)


def serious_violations(tab: Any) -> list[tuple[str, str]]:
    """Return what axe finds, each with its first place; the page may not be wider than its window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = axe.run(tab).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [(each["id"], each["nodes"][0]["html"]) for each in serious]
