"""The page of `serve` in a browser: drop, paste and chooser, heat on turned photos, nothing external."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import brightness, photo, running

from firstlight.run import Run
from firstlight.serve.guard import Bucket
from firstlight.serve.network import Network

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here: on Debian, apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright, which is not here")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return Run.open(trained)


@pytest.fixture(scope="module")
def port(run: Run) -> Iterator[int]:
    with running(Network(run, run.fit), Bucket(1e9, 10**9)) as port:
        yield port


def opened(browser: Any, port: int, heard: list[str]) -> Any:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.on("console", lambda message: heard.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
    tab.on("request", lambda request: heard.append(request.url))
    tab.goto(f"http://127.0.0.1:{port}/")
    tab.wait_for_selector("html.ready")
    return tab


@pytest.fixture
def page(browser: Any, port: int) -> Iterator[Any]:
    heard: list[str] = []
    tab = opened(browser, port, heard)
    yield tab
    tab.close()
    assert [url for url in heard if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))] == []


def give(tab: Any, way: str, data: bytes, name: str = "photo.jpg") -> None:
    if way == "choose":
        with tab.expect_file_chooser() as chooser:
            tab.locator("#choose").press("Enter")
        chooser.value.set_files({"name": name, "mimeType": "image/jpeg", "buffer": data})
        return
    tab.evaluate(
        """([way, text, name]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
          const event = way === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
          document.querySelector("#drop").dispatchEvent(event);
        }""",
        [way, base64.b64encode(data).decode(), name],
    )


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_every_way_in_and_every_turn_gives_what_predict_gives(
    page: Any, run: Run, way: str, tmp_path: Path
) -> None:
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.jpg"
        path.write_bytes(photo(orientation, (500, 300), 150))
        give(page, way, path.read_bytes(), path.name)
        card = page.locator(".answer").first
        card.locator(".both").wait_for(state="visible")
        answer = card.evaluate("card => card.answer")
        given = {each["class"]: each["probability"] for each in answer["probabilities"]}
        assert given == run.predict(path)[0].probabilities
        assert card.locator(".verdict strong").inner_text() == answer["label"]
        assert card.locator(".suspects img").count() == 6
        card.locator(".remove").click()


_REDNESS = """canvas => {
  const { width, height } = canvas;
  const now = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let most = -1, at = 0;
  for (let i = 0; i < now.length; i += 4) {
    const difference = now[i] - now[i + 2];
    if (difference > most) { most = difference; at = i / 4; }
  }
  return { x: (at % width) / width, y: Math.floor(at / width) / height, most, width, height };
}"""


@pytest.mark.parametrize(("fit", "box"), [("stretch", 32), ("crop", 60), ("pad", 32)])
def test_the_heat_lies_where_a_person_sees_the_object(browser: Any, fit: str, box: int) -> None:
    heard: list[str] = []
    with running(brightness(fit), Bucket(1e9, 10**9)) as port:
        tab = opened(browser, port, heard)
        for orientation in range(1, 9):
            give(tab, "drop", photo(orientation, (160, 96), box))
            card = tab.locator(".answer").first
            card.locator(".both").wait_for(state="visible")
            card.locator("button[value=bright]").click()
            card.locator(".opacity").fill("100")
            spot = card.locator("canvas.picture").evaluate(_REDNESS)
            assert spot["width"] / spot["height"] == pytest.approx(160 / 96, abs=0.01)
            assert spot["most"] > 60
            assert spot["x"] < box / 160 + 0.05 and spot["y"] < box / 96 + 0.05, (orientation, spot)
            card.locator(".opacity").fill("0")
            assert card.locator("canvas.picture").evaluate(_REDNESS)["most"] < 10
            card.locator(".remove").click()
        tab.close()
    # Reading the canvas, which only this test does, makes Chromium give advice.
    said = [words for words in heard if words.startswith(("console", "error")) and "Canvas2D" not in words]
    assert said == []


def test_several_pictures_at_once_and_a_broken_one(browser: Any, port: int) -> None:
    tab = opened(browser, port, [])
    files = [{"name": f"{k}.jpg", "mimeType": "image/jpeg", "buffer": photo(k)} for k in (1, 6, 8)]
    files.insert(1, {"name": "<b>broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    tab.locator("#files").set_input_files(files)
    for place in (0, 2, 3):
        tab.locator(".answer").nth(place).locator(".both").wait_for(state="visible")
    assert tab.locator(".answer .file").all_inner_texts() == ["1.jpg", "<b>broken.jpg", "6.jpg", "8.jpg"]
    said = tab.locator(".answer").nth(1).locator(".missing")
    said.wait_for(state="visible")
    assert "<b>broken.jpg is no image file" in said.inner_text()
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_use_it(browser: Any, port: int, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    # The policy of the page would keep axe out as well; it is switched off in this test alone.
    size = {"width": width, "height": 800}
    tab = browser.new_page(bypass_csp=True, color_scheme=scheme, viewport=size)
    tab.goto(f"http://127.0.0.1:{port}/")
    give(tab, "drop", photo(6))
    tab.locator(".both").wait_for(state="visible")
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = axe.run(tab).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
    tab.close()
