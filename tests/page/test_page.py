"""The page is one closed file: nothing is fetched, only its own script runs, names stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_folder import COUNT, EVIL, SUMMARY, make_run
from PIL import Image
from tiny import random_images

from firstlight.data.augment import normalise
from firstlight.data.images import ImageSet
from firstlight.insight.evaluation import Evaluation
from firstlight.insight.gradcam import gradcam
from firstlight.insight.suspects import suspects
from firstlight.page import payload
from firstlight.page.page import Page, PageData, setting, write_page
from firstlight.record import record
from firstlight.record.record import Record
from firstlight.record.suspects import TrainingSuspects

ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the words between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """A run folder that lacks nothing, with its page."""
    path = tmp_path_factory.mktemp("whole") / "run & <b>"
    path.mkdir()
    evaluation = make_run(path)
    write_page(Record.open(path))
    return path, evaluation


@pytest.fixture
def folder(whole: tuple[Path, Evaluation], tmp_path: Path) -> Path:
    """A copy of the run, for a test to break."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def text(whole: tuple[Path, Evaluation]) -> str:
    return (whole[0] / record.REPORT).read_text(encoding="utf-8")


def script_of(text: str) -> dict[str, Any]:
    (script,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(script))


def report(path: Path) -> Reader:
    return Reader(write_page(Record.open(path)).read())


def test_nothing_is_fetched_and_no_other_style_or_script_is_allowed(text: str) -> None:
    addressed = {"src", "srcset", "action", "data", "poster", "background", "formaction"}
    for tag, attributes in Reader(text).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in addressed & set(attributes):
            assert (attributes[name] or "").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    without_pictures = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", text)
    links = set(re.findall(r"\w+://[^\s\"']+", without_pictures))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "url(" not in without_pictures and "@import" not in without_pictures

    metas = Reader(text).of("meta")
    (policy,) = [meta["content"] or "" for meta in metas if "Policy" in (meta.get("http-equiv") or "")]
    for tag in ("style", "script"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        assert " ".join([f"{tag}-src", *(f"'sha256-{digest}'" for digest in digests)]) in policy.split("; ")
    assert {"default-src 'none'", "img-src data:", "base-uri 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    # Before it stands nothing that a browser would act on.
    assert text.index("Content-Security-Policy") < min(text.index("<style"), text.index("<title"))


def test_names_stay_text_wherever_they_come_from(text: str) -> None:
    assert "<img src=x" not in text and "run & <b>" not in text and "</script><script>" not in text
    assert text.count("</script>") == 4
    assert text.count(ESCAPED) > 5  # class by class, in the data, the finding, the command
    assert "run & <b>" in Reader(text).text
    script = script_of(text)
    assert script["classes"][0] == EVIL
    assert script["items"]["name"][0].startswith(f'photos/{EVIL}/"')


def test_the_first_screen_tells_both_accuracies_apart_with_interval_hardware_and_times(text: str) -> None:
    words = Reader(text).text
    plain = "93.14% test accuracy without test-time augmentation 95% interval 92.63% to 93.62%"
    assert f"{plain}, {COUNT}" in words
    assert "94.02% with test-time augmentation: the mean over the image and its mirror image" in words
    for fact in ("Some CPU, 2 cores", "57 min", "67 min", "2 min 45 s", "6,573,120", "0.0018 to 0.4"):
        assert fact in words, fact


def test_items_are_all_mistakes_and_then_right_answers(text: str, whole: tuple[Path, Evaluation]) -> None:
    evaluation, items = whole[1], script_of(text)["items"]
    wrong = evaluation.mistakes.tolist()
    assert items["index"][: len(wrong)] == wrong
    right = items["index"][len(wrong) :]
    assert right and all(evaluation.predictions[i] == evaluation.labels[i] for i in right)
    for row in (0, len(wrong) - 1, len(items["index"]) - 1):
        index = items["index"][row]
        label = int(evaluation.labels[index])
        assert items["true"][row] == label
        assert items["predicted"][row] == int(evaluation.predictions[index]) == items["top"][row][0]
        assert items["loss"][row] == pytest.approx(float(evaluation.losses[index]), abs=1e-4)
        said = items["trueProbability"][row]
        assert said == pytest.approx(float(evaluation.probabilities[index, label]), abs=1e-4)
    assert f"All {len(wrong)} mistakes are here, and {len(right)} of {evaluation.right}" in Reader(text).text


def pixels_of(uri: str | None) -> torch.Tensor:
    image = Image.open(io.BytesIO(base64.b64decode((uri or "").partition(",")[2])))
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def test_images_are_the_kept_ones_bit_for_bit(text: str, whole: tuple[Path, Evaluation]) -> None:
    run = Record.open(whole[0])
    assert run.kept_images is not None and run.samples is not None
    images, indices = run.kept_images
    sheet, *film = Reader(text).of("img")
    pixels, items = pixels_of(sheet["src"]), script_of(text)["items"]
    for row in (0, 41, len(items["index"]) - 1):
        tile = items["tile"][row]
        top, left = tile // payload.COLUMNS * 32, tile % payload.COLUMNS * 32
        expected = images[indices.tolist().index(items["index"][row])]
        assert torch.equal(pixels[:, top : top + 32, left : left + 32], expected)
    assert len(film) == 4 * 3
    for image, sample in zip(film[:3], run.samples["images"], strict=True):
        assert torch.equal(pixels_of(image["src"]), sample)


def test_heat_is_grad_cam_for_both_classes_on_its_grid(text: str, whole: tuple[Path, Evaluation]) -> None:
    run, evaluation, heat = Record.open(whole[0]), whole[1], script_of(text)["heat"]
    assert heat["endpoint"] == "layer2" and heat["grid"] == [8, 8]
    assert heat["count"] == len(evaluation.mistakes)
    values = torch.frombuffer(bytearray(base64.b64decode(heat["bytes"])), dtype=torch.uint8).view(-1, 2, 8, 8)
    assert run.kept_images is not None
    worst, images = evaluation.mistakes[:5], normalise(run.kept_images[0][:5], run.data.mean, run.data.std)
    classes = (evaluation.predictions[worst], evaluation.labels[worst])
    maps = torch.stack([gradcam(run.model, images, targets).maps for targets in classes], dim=1)
    expected = 255 * maps / maps.flatten(1).amax(1).clamp_min(1e-30).view(-1, 1, 1, 1)
    torch.testing.assert_close(values[:5].float(), expected, atol=0.51, rtol=0)


def test_the_checklist_is_for_recipes_of_the_assignment_and_a_setting_is_said_beside_its_number(
    folder: Path, text: str
) -> None:
    plain = Reader(text).text
    assert "✓ As the assignment says: " in plain and "✗ Not as the assignment says: " in plain
    assert "label smoothing (" not in plain and "to two corners" not in plain
    values = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    smoothing = {"type": "Objective", "label_smoothing": 0.2}
    values["recipe"] |= {"name": "my.own", "objective": smoothing, "tta_shift": 2}
    (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    words = report(folder).text
    assert "assignment" not in words
    assert "Only its loss includes label smoothing (0.2)." in words
    assert "also moved by 2 pixels to two corners" in words and "has no other view" not in words
    values["recipe"] |= {"tta_below": 0.7}
    (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    assert "to two corners; an image classified at 70% or more has no other view" in report(folder).text


def test_images_that_do_not_fit_are_left_out_from_the_end() -> None:
    images = random_images(200, 3, 32, 32)
    limit = len(payload.sheet(images)) // 2
    uri, indices = payload.sheet_within(images, torch.arange(500, 700), limit)
    assert len(uri) <= limit and 80 <= len(indices) < 110
    assert indices.tolist() == list(range(500, 500 + len(indices)))


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (record.FINDING, "the rates were given, so the finder did not run"),
        (record.MODEL, ""),
        (record.PICTURES, "this run keeps no test images"),
        (record.SAMPLES, "this run keeps no augmented images"),
        (record.PREDICTIONS, "this run keeps no predictions"),
        (record.HISTORY, "no epoch was finished"),
        (record.SUMMARY, "the test accuracy. This run was not evaluated"),
        (record.MISTAKES, ""),
    ],
)
def test_what_a_folder_lacks_or_holds_damaged_is_named(lost: str, words: str, folder: Path) -> None:
    (folder / lost).unlink()
    page = report(folder).text
    assert "Firstlight report" in page and "The assignment, line by line" in page
    assert not words or f"Not available: {words}" in page
    if not lost.endswith(".json"):
        (folder / lost).write_bytes(b"\x00 damaged")
        assert "Firstlight report" in report(folder).text


def test_the_bare_beginning_of_a_run_has_a_page(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (record.ENVIRONMENT, "recipe.json"):
            path.unlink()
    page = report(folder)
    assert page.text.count("Not available: ") >= 6 and not page.of("img")
    (folder / record.ENVIRONMENT).unlink()
    words = report(folder).text
    assert "cannot read environment.json" in words and str(folder) not in words


def test_numbers_that_are_none_and_a_network_that_diverged_have_a_page(folder: Path) -> None:
    for value in ("ninety", {}, float("nan")):
        numbers = {key: value for key in SUMMARY.to_json() if key not in ("date", "peak_lr", "min_lr")}
        (folder / record.SUMMARY).write_text(json.dumps(numbers), encoding="utf-8")
        words = report(folder).text
        assert "nan" not in words.lower().split() and "not measured" in words, value
    run = Record.open(folder)
    tensors = run.folder.read_tensors(record.PREDICTIONS)
    tensors["probabilities"] *= torch.nan
    run.folder.write_tensors(record.PREDICTIONS, tensors)
    last = dataclasses.replace(run.history.epochs[-1], train_loss=float("nan"))
    run.write_history(dataclasses.replace(run.history, epochs=(*run.history.epochs[:-1], last)))
    assert "probabilities has values outside 0 to 1" in report(folder).text


def test_a_table_of_mistakes_of_another_kind_only_loses_names(folder: Path) -> None:
    for content in ("", "a,b\n1,2\n", "index,name,true,predicted,confidence\n1\n1,2,3,4,5,6,7\nx,y,z,0,0\n"):
        (folder / record.MISTAKES).write_text(content, encoding="utf-8")
        items = script_of(write_page(Record.open(folder)).read())["items"]
        assert items["index"] and items["name"][0] == ""


def test_settings_are_written_as_a_person_would_and_the_command_does_only_what_the_run_did(
    whole: tuple[Path, Evaluation], text: str
) -> None:
    part = {"type": "Crop", "size": 32, "padding": "reflect"}
    assert setting([part, {"type": "FlipLR"}]) == "Crop(size=32, padding=reflect), FlipLR()"
    values = (True, None, 0.00050000001, [], "x")
    assert [*map(setting, values)] == ["yes", "–", "0.0005", "none", "x"]
    assert "peak_lr=0.4 (found), min_lr=0.0018 (found)" in Reader(text).text
    page = PageData.of(Record.open(whole[0]))
    command = page.command()
    assert command is not None and command in Reader(text).text
    # It is built from the recipe: what the folder says of it, and of a precision that is none, is not shown.
    assert command.startswith("firstlight train shapes.demo ") and "onerror" not in command
    forged = {"command": "firstlight train x; rm -rf ~", "precision": page.environment["precision"]}
    assert dataclasses.replace(page, environment=forged).command() == command
    for precision in ("fp32; rm -rf ~", None, 17, ["fp32"]):
        assert dataclasses.replace(page, environment={"precision": precision}).command() is None


def test_a_notebook_shows_the_page_within(whole: tuple[Path, Evaluation], text: str) -> None:
    page = Page(whole[0] / record.REPORT)
    (frame,) = Reader(page._repr_html_()).of("iframe")
    assert frame["srcdoc"] == text
    assert str(page).endswith("report.html") and Path(page).is_file()


def test_more_labels_are_shown_than_seem_wrong(whole: tuple[Path, Evaluation], text: str) -> None:
    evaluation, script = whole[1], script_of(text)
    ranking = suspects(evaluation.labels, evaluation.probabilities)
    shown = [script["items"]["index"][row] for row in script["suspects"]]
    ranked = [index for index in ranking.order.tolist() if index in set(evaluation.mistakes.tolist())]
    assert ranking.count < 24 and shown == ranked[:24]
    words = Reader(text).text
    assert f"about {ranking.count} labels" in words if ranking.count else "no label is likely" in words
    assert "Show the 24 most doubtful labels" in words and "only their order has a meaning" in words
    assert "firstlight suspects 'run & <b>' does so" in words


def test_label_errors_of_the_training_set_are_shown_with_their_images(folder: Path) -> None:
    run, labels, images = Record.open(folder), torch.arange(COUNT) % 10, random_images(COUNT, 3, 32, 32)
    names = [f"{EVIL} {index}" for index in range(COUNT)]
    rows = torch.randn(COUNT, 10, generator=torch.Generator().manual_seed(1)).softmax(1)
    ranking = suspects(labels, rows)
    data = ImageSet(images, labels, run.data.classes, run.data.mean, run.data.std, names)
    TrainingSuspects.write(run.folder, ranking, rows, data)
    page = report(folder)
    shown = [image for image in page.of("img") if image.get("width") == "64"]
    assert len(shown) == payload.shown_suspects(ranking.count)
    assert torch.equal(pixels_of(shown[0]["src"]), images[ranking.order[0]])
