"""The page is one closed file: nothing is fetched, only its own script runs, names stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from page_folder import COUNT, ENVIRONMENT, EVIL, SUMMARY, make_run

from firstlight.insight.evaluation import Evaluation
from firstlight.insight.suspects import suspects
from firstlight.page import payload
from firstlight.page.page import Page, setting
from firstlight.record import record
from firstlight.record.run_folder import RunFolder
from firstlight.run import Run

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
    place = tmp_path_factory.mktemp("whole") / "run & <b>"
    place.mkdir()
    evaluation = make_run(place)
    Run.open(place).report()
    return place, evaluation


@pytest.fixture
def folder(whole: tuple[Path, Evaluation], tmp_path: Path) -> Path:
    """A copy of the run, for a test to break."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def text(whole: tuple[Path, Evaluation]) -> str:
    return (whole[0] / record.REPORT).read_text(encoding="utf-8")


def script_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(found))


def report(place: Path) -> Reader:
    return Reader(Run.open(place).report().read())


def test_nothing_is_fetched(text: str) -> None:
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


def test_the_policy_allows_this_style_and_this_script_and_no_other(text: str) -> None:
    (policy,) = [
        meta["content"] or ""
        for meta in Reader(text).of("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    for tag in ("style", "script"):
        (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.split("; ")
    assert {"default-src 'none'", "img-src data:", "base-uri 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    # Before it stands nothing that a browser would act on.
    assert text.index("Content-Security-Policy") < min(text.index("<style"), text.index("<title"))


def test_names_stay_text_wherever_they_come_from(text: str) -> None:
    assert "<img src=x" not in text and "run & <b>" not in text and "</script><script>" not in text
    assert text.count("</script>") == 2
    assert text.count(ESCAPED) > 5  # class by class, in the data, the finding, the command
    assert "run & <b>" in Reader(text).text
    found = script_of(text)
    assert found["classes"][0] == EVIL
    assert found["items"]["name"][0].startswith(f'photos/{EVIL}/"')


def test_both_accuracies_are_told_apart_with_interval_hardware_and_times(text: str) -> None:
    said = Reader(text).text
    assert "93.14% test accuracy without test-time augmentation" in said
    assert f"95 % interval 92.63% to 93.62%, {COUNT} images" in said
    assert "94.02% with test-time augmentation" in said
    for words in ("Some CPU, 2 cores", "57 min", "67 min", "2 min 45 s", "6,573,120", "0.0018 to 0.4"):
        assert words in said, words


def test_items_are_all_mistakes_and_then_right_answers(text: str, whole: tuple[Path, Evaluation]) -> None:
    evaluation, found = whole[1], script_of(text)
    listed = found["items"]
    wrong = evaluation.mistakes.tolist()
    assert listed["index"][: len(wrong)] == wrong
    right = listed["index"][len(wrong) :]
    assert right and all(evaluation.predictions[i] == evaluation.labels[i] for i in right)
    for place in (0, len(wrong) - 1, len(listed["index"]) - 1):
        index = listed["index"][place]
        assert listed["true"][place] == int(evaluation.labels[index])
        assert listed["said"][place] == int(evaluation.predictions[index]) == listed["top"][place][0]
        assert listed["loss"][place] == pytest.approx(float(evaluation.losses[index]), abs=1e-4)
        assert listed["truth"][place] == pytest.approx(
            float(evaluation.probabilities[index, evaluation.labels[index]]), abs=1e-4
        )
    assert f"All {len(wrong)} mistakes are here, and {len(right)} of {evaluation.right}" in Reader(text).text


def test_tiles_are_the_kept_images_bit_for_bit(text: str, whole: tuple[Path, Evaluation]) -> None:
    import io

    import numpy as np
    from PIL import Image

    kept = RunFolder(whole[0]).read_tensors(record.PICTURES)
    (sheet,) = [image for image in Reader(text).of("img") if image.get("id") == "sheet"]
    opened = Image.open(io.BytesIO(base64.b64decode((sheet["src"] or "").partition(",")[2])))
    pixels = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)
    listed = script_of(text)["items"]
    for place in (0, 41, len(listed["index"]) - 1):
        tile = listed["tile"][place]
        top, left = tile // payload.COLUMNS * 32, tile % payload.COLUMNS * 32
        expected = kept["images"][kept["indices"].tolist().index(listed["index"][place])]
        assert torch.equal(pixels[:, top : top + 32, left : left + 32], expected)


def test_heat_is_grad_cam_for_both_classes_on_its_native_grid(
    text: str, whole: tuple[Path, Evaluation]
) -> None:
    run, heat = Run.open(whole[0]), script_of(text)["heat"]
    assert heat["endpoint"] == "layer2" and heat["grid"] == [8, 8]
    assert heat["count"] == len(run.evaluation.mistakes)
    values = torch.frombuffer(bytearray(base64.b64decode(heat["bytes"])), dtype=torch.uint8).view(-1, 2, 8, 8)
    worst = run.evaluation.mistakes[:5]
    images = run.kept_pictures()[0][:5]
    both = run.heatmaps(images, run.evaluation.predictions[worst], run.evaluation.labels[worst])
    maps = torch.stack([heatmaps.maps for heatmaps in both], dim=1)
    expected = 255 * maps / maps.flatten(1).amax(1).clamp_min(1e-30).view(-1, 1, 1, 1)
    torch.testing.assert_close(values[:5].float(), expected, atol=0.51, rtol=0)


def test_the_checklist_says_kept_and_broken_in_words_too(text: str) -> None:
    said = Reader(text).text
    assert "✓ As the assignment says: " in said and "✗ Otherwise than the assignment: " in said


def test_what_a_setting_does_to_a_number_is_said_beside_it(folder: Path, text: str) -> None:
    plain = Reader(text).text
    assert "label smoothing (" not in plain and "to two corners" not in plain
    values = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    values["recipe"] |= {"label_smoothing": 0.2, "tta_shift": 2}
    (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    said = Reader(Run(RunFolder(folder)).report().path.read_text(encoding="utf-8")).text
    assert "its loss alone is with label smoothing (0.2)" in said
    assert "also moved by 2 pixels to two corners" in said


def test_pictures_that_do_not_fit_are_left_out_from_the_end() -> None:
    images = torch.randint(
        256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    limit = len(payload.sheet(images)) // 2
    made, kept = payload.sheet_within(images, torch.arange(500, 700), limit)
    assert len(made) <= limit and 80 <= len(kept) < 110
    assert kept.tolist() == list(range(500, 500 + len(kept)))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (record.FINDING, "the rates were given, so none were sought"),
        (record.MODEL, None),
        (record.PICTURES, "this run keeps no test images"),
        (record.SAMPLES, "this run keeps no augmented images"),
        (record.PREDICTIONS, "this run keeps no predictions"),
        (record.HISTORY, "no epoch was finished"),
        (record.SUMMARY, "the test accuracy. This run was not evaluated"),
        (record.MISTAKES, None),
    ],
)
def test_what_a_folder_lacks_is_named(lost: str, said: str | None, folder: Path) -> None:
    (folder / lost).unlink()
    found = report(folder).text
    assert "Firstlight report" in found and "The assignment, line by line" in found
    if said is not None:
        assert f"Not available: {said}" in found


def test_the_bare_beginning_of_a_run_has_a_page(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (record.ENVIRONMENT, "recipe.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    read = report(folder)
    assert read.text.count("Not available: ") >= 6
    assert [image.get("id") for image in read.of("img")] == []


@pytest.mark.parametrize("value", [None, "ninety", [], {}, float("nan")])
def test_numbers_that_are_none_break_nothing(value: Any, folder: Path) -> None:
    broken = {key: value for key in SUMMARY if key not in ("date", "peak_lr", "min_lr")}
    record.write_summary(RunFolder(folder), broken)
    found = report(folder).text
    assert "nan" not in found.lower().split()
    assert "not measured" in found


def test_a_table_of_mistakes_of_another_kind_only_loses_names(folder: Path) -> None:
    for content in ("", "a,b\n1,2\n", "index,name,true,predicted,confidence\n1\n1,2,3,4,5,6,7\nx,y,z,0,0\n"):
        (folder / record.MISTAKES).write_text(content, encoding="utf-8")
        found = script_of(Run.open(folder).report().read())
        assert found["items"]["index"] and found["items"]["name"][0] == ""


def test_a_rate_left_open_is_shown_as_found(text: str) -> None:
    assert "peak lr found: 0.4" in Reader(text).text


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


def test_a_notebook_shows_the_page_within(whole: tuple[Path, Evaluation], text: str) -> None:
    page = Page(whole[0] / record.REPORT)
    (frame,) = Reader(page._repr_html_()).of("iframe")
    assert frame["srcdoc"] == text
    assert str(page).endswith("report.html") and Path(page).is_file()


def test_figures_are_written_beside_it(whole: tuple[Path, Evaluation]) -> None:
    drawn = sorted(path.stem for path in (whole[0] / record.FIGURES).iterdir())
    assert drawn == ["augmentations", "confusion", "gradcam", "learning_curves", "lr_finder", "misclassified"]


def test_the_command_is_told(text: str) -> None:
    assert ENVIRONMENT["command"] in Reader(text).text


def test_more_labels_are_shown_than_are_estimated_to_be_wrong(
    whole: tuple[Path, Evaluation], text: str
) -> None:
    _, evaluation = whole
    found = suspects(evaluation.labels, evaluation.probabilities)
    script = script_of(text)
    shown = [script["items"]["index"][place] for place in script["suspects"]]
    ranked = [index for index in found.order.tolist() if index in set(evaluation.mistakes.tolist())]
    assert found.count < 24 and shown == ranked[:24]
    said = Reader(text).text
    estimated = f"about {found.count} may carry" if found.count else "none is likelier to carry"
    assert (
        estimated in said and "Look at the 24 most doubtful" in said and "only the order is claimed" in said
    )
