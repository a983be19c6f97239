"""The page is one closed file: nothing runs in it, nothing is fetched, names stay text, gaps are named."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.data.images import ImageSet
from firstlight.insight.evaluation import Evaluation
from firstlight.recipes import named
from firstlight.record import contents
from firstlight.record.folder import RunFolder
from firstlight.report import figures
from firstlight.report.checklist import Line
from firstlight.report.opened import Run
from firstlight.report.page import setting, write_page
from firstlight.training.history import Epoch, History
from firstlight.training.lr_finder import LRFinding

EVIL = "<img src=x onerror=alert(1)>"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"
PICTURES = ("learning_curves", "lr_finder", "augmentations", "confusion", "misclassified", "gradcam")
SUMMARY = {
    "test_accuracy": 0.9314,
    "test_accuracy_tta": 0.9402,
    "test_interval_95": [0.9263, 0.9362],
    "epochs": 24,
    "parameters": 6573120,
    "train_seconds": 3420.0,
    "wall_seconds": 4000.0,
    "peak_lr": 0.4,
    "min_lr": 0.0018,
    "date": "2026-01-01",
}
ENVIRONMENT: dict[str, Any] = {
    "hardware": "Some CPU, 2 cores",
    "precision": "bf16",
    "threads": 2,
    "firstlight": "0.1.0",
    "torch": "2.9.0",
    "data": {"classes": ["cat", EVIL], "test_images": 10000, "shape": [3, 32, 32], "mean": [0.5, 0.5, 0.5]},
}
LINES = [Line("24 epochs", True), Line("batch size 64", False), Line(f"no annihilation {EVIL}", None)]


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the words between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def png() -> bytes:
    history = History((Epoch(1, 5, 0.1, 1.0, 0.5, 100.0, 3.0),))
    return figures.to_png(figures.learning_curves(history))


def recipe() -> dict[str, Any]:
    return {
        "name": EVIL,
        **{key: value for key, value in named("shapes.demo").to_json().items() if key != "name"},
    }


def page(
    folder: RunFolder,
    png: bytes | None,
    summary: dict[str, Any] = SUMMARY,
    environment: dict[str, Any] = ENVIRONMENT,
) -> str:
    drawn = dict.fromkeys(PICTURES, png) if png else {}
    path = write_page(folder, drawn, {}, summary, environment, recipe(), LINES)  # type: ignore[arg-type]
    assert path == folder.path / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    place = tmp_path / "run & <b>"
    place.mkdir()
    (place / contents.MISTAKES).write_text(
        "index,name,true,predicted,confidence,loss\n"
        f'7,"photos/{EVIL}.png",{EVIL},cat,0.987654,4.4\n'
        "9,photos/b.png,cat,dog,0.5,1.0\n",
        encoding="utf-8",
    )
    return RunFolder(place)


def test_nothing_is_fetched_and_nothing_runs(folder: RunFolder, png: bytes) -> None:
    text = page(folder, png)
    read = Reader(text)
    addressed = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}
    for tag, attributes in read.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "svg"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in addressed & set(attributes):
            assert (attributes[name] or "").startswith("data:image/png;base64,")
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert (
        "//" not in without_pictures and "url(" not in without_pictures and "@import" not in without_pictures
    )
    assert len(without_pictures) < 40_000


def test_the_policy_allows_this_style_and_no_other(folder: RunFolder, png: bytes) -> None:
    text = page(folder, png)
    (policy,) = [
        meta["content"] or ""
        for meta in Reader(text).of("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert {"default-src 'none'", "img-src data:", "base-uri 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy and "script-src" not in policy
    # Before it stands nothing that a browser would act on.
    assert text.index("Content-Security-Policy") < min(text.index("<style"), text.index("<title"))


def test_every_picture_is_in_the_page_whole_with_words_for_who_cannot_see_it(
    folder: RunFolder, png: bytes
) -> None:
    images = Reader(page(folder, png)).of("img")
    assert len(images) == len(PICTURES)
    for image in images:
        assert base64.b64decode((image["src"] or "").partition(",")[2]) == png
        assert (image["width"], image["height"]) == ("1260", "1222")
        assert len(image["alt"] or "") > 20
    assert len({image["alt"] for image in images}) == len(PICTURES)


def test_names_stay_text_wherever_they_come_from(folder: RunFolder, png: bytes) -> None:
    text = page(folder, png)
    assert "<img src=x" not in text and "run & <b>" not in text
    # recipe (twice), class in the data, file and class in the table of mistakes, line of the checklist
    assert text.count(ESCAPED) >= 6
    read = Reader(text)
    assert f"photos/{EVIL}.png" in read.text and "run & <b>" in read.text


def test_both_accuracies_are_told_apart_with_interval_hardware_and_times(
    folder: RunFolder, png: bytes
) -> None:
    folder.write_json(contents.FINDING, {"seconds": 165.0})
    text = Reader(page(folder, png)).text
    assert "93.14% test accuracy without test-time augmentation" in text
    assert "95 % interval 92.63% to 93.62%, 10,000 images" in text
    assert "94.02% with test-time augmentation" in text
    for words in ("Some CPU, 2 cores", "57 min", "67 min", "2 min 45 s", "6,573,120", "0.0018 to 0.4"):
        assert words in text, words


def test_mistakes_are_listed_by_name(folder: RunFolder, png: bytes) -> None:
    text = Reader(page(folder, png)).text
    assert "The worst 2 by name" in text and "9 photos/b.png dog 50.00% cat" in text


def test_the_checklist_says_kept_broken_and_open_in_words_too(folder: RunFolder, png: bytes) -> None:
    text = Reader(page(folder, png)).text
    assert "✓ As the assignment says: 24 epochs" in text
    assert "✗ Otherwise than the assignment: batch size 64" in text
    assert "☐ Not known: no annihilation" in text


def test_missing_parts_are_named(tmp_path: Path) -> None:
    path = write_page(
        RunFolder(tmp_path), {}, {"lr_finder": f"the rates were given {EVIL}"}, {}, {}, {"peak_lr": None}, []
    )
    text = path.read_text(encoding="utf-8")
    read = Reader(text)
    assert not read.of("img")
    assert "Not available: the test accuracy" in read.text
    assert f"Not available: the rates were given {EVIL}." in read.text
    assert read.text.count("Not available: this picture was not drawn.") == len(PICTURES) - 1
    assert "Not available: this run keeps no weights" in read.text
    assert "Not available: this run keeps no description" in read.text


@pytest.mark.parametrize("value", [None, "ninety", [], {}, float("nan")])
def test_numbers_that_are_none_break_nothing(value: Any, folder: RunFolder, png: bytes) -> None:
    broken = {key: value for key in SUMMARY if key != "date"}
    text = Reader(page(folder, png, broken, {"data": value})).text
    assert "not measured" in text and "nan" not in text.lower().split()


def test_a_table_of_mistakes_of_another_kind_is_left_out(folder: RunFolder, png: bytes) -> None:
    for content in ("", "a,b\n1,2\n", "index,name,true,predicted,confidence\n1\n1,2,3,4,5,6,7\n"):
        folder.write(contents.MISTAKES, content)
        assert "Learning curves" in Reader(page(folder, png)).text


def test_a_rate_left_open_is_shown_as_found(tmp_path: Path) -> None:
    open_recipe = {"name": "x", "peak_lr": None, "min_lr": 0.01}
    path = write_page(RunFolder(tmp_path), {}, {}, SUMMARY, ENVIRONMENT, open_recipe, [])
    text = Reader(path.read_text(encoding="utf-8")).text
    assert "peak lr found: 0.4" in text and "min lr 0.01" in text


def test_settings_are_written_as_a_person_would() -> None:
    part = {"type": "Crop", "size": 32, "padding": "reflect"}
    assert setting([part, {"type": "FlipLR"}]) == "Crop(size=32, padding=reflect), FlipLR()"
    assert [setting(value) for value in (True, None, 0.00050000001, [], "x")] == [
        "yes",
        "–",
        "0.0005",
        "none",
        "x",
    ]


def test_a_run_folder_becomes_a_page_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    chosen = named("shapes.demo").replace(width=2, epochs=1, peak_epoch=1)
    classes, count = chosen.data.classes, 40
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(
        images=torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator),
        labels=torch.arange(count) % len(classes),
        classes=classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        names=[f"{EVIL}/{index}.png" for index in range(count)],
    )
    probabilities = torch.randn(count, len(classes), generator=generator).softmax(1)
    plain, mirrored = (
        Evaluation(classes, images.labels, probabilities, images.names, tta) for tta in (False, True)
    )
    samples = {"images": images.images[:3], "labels": images.labels[:3]}
    for place, part in enumerate(chosen.augment):
        samples[f"draws_{place}"] = part.sample(3, 32, 32, generator)
    data = {"classes": list(classes), "shape": [3, 32, 32], "mean": images.mean, "std": images.std}
    finding = LRFinding((0.1, 0.2, 0.4), (2.0, 1.0, 2.5), (2.0, 1.1, 2.4), 0.2, 0.1, "so", "so", 1.0)
    folder = RunFolder(tmp_path)
    contents.write_start(folder, chosen, finding, {**ENVIRONMENT, "data": data}, samples)
    contents.write_history(folder, History((Epoch(1, 5, 0.1, 1.0, 0.5, 100.0, 3.0),)))
    contents.write_evaluation(folder, plain, mirrored, images)
    contents.write_summary(folder, dict(SUMMARY))
    read = Reader(Run.open(tmp_path).report().read_text(encoding="utf-8"))
    assert len(read.of("img")) == len(PICTURES) - 1
    assert "keeps no weights" in read.text  # Grad-CAM needs the network
    assert f"{EVIL}/" in read.text
    drawn = sorted(path.stem for path in (tmp_path / contents.FIGURES).iterdir())
    assert drawn == sorted(set(PICTURES) - {"gradcam"})
