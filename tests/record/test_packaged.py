"""A network that comes with the package: named, verified, judged as its card says, and never written."""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import firstlight
from firstlight.cli import main
from firstlight.errors import InputError
from firstlight.machine.streams import stream
from firstlight.record import packaged
from firstlight.run import open_run

NAME = "pretrained:cifar10"
PAGE = Path(__file__).resolve().parents[2] / "docs/pretrained.md"


def in_shell(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_it_opens_as_a_run_without_history_or_images() -> None:
    run = open_run(NAME)
    assert len(run.history) == 0 and run.kept_images is None and run.finding is None
    assert run.data.classes[3] == "cat" and run.recipe.name == "cifar10.fast"
    assert {value.dtype for value in run.model.state_dict().values()} <= {torch.float32, torch.int64}
    assert repr(run).startswith(f"<Run {NAME}: cifar10.fast")


NOT_FOR_PREDICT = (
    *("matplotlib", "jinja2", "onnx", "onnxruntime", "starlette", "uvicorn", "requests", "pandas", "scipy"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "torchvision", "concurrent.futures.process"),
    *("firstlight.figures", "firstlight.page", "firstlight.serve.app", "firstlight.jobs.train"),
)
"""Modules that take long to load, and that classifying a picture does not need."""


def test_a_picture_is_classified_without_loading_what_that_does_not_need(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "some.png")
    program = (
        "import subprocess, sys\n"
        "def refuse(*words, **options): raise AssertionError(f'a process was started: {words}')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "import torch; before = set(sys.modules)\n"
        "from firstlight.cli import main\n"
        f"try: main(['predict', {NAME!r}, {str(tmp_path / 'some.png')!r}])\n"
        "except SystemExit as end: assert not end.code, end\n"
        f"names = {NOT_FOR_PREDICT!r}\n"
        "loaded = [m for m in set(sys.modules) - before if any(f'{m}.'.startswith(f'{n}.') for n in names)]\n"
        "assert not loaded, loaded\n"
    )
    # Kernels that are not built are not compiled for it either.
    variables = {**os.environ, "FIRSTLIGHT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert "some.png" in done.stdout


def test_the_card_describes_the_file_that_is_there() -> None:
    folder = packaged.PackagedFolder("cifar10")
    card, data = folder.card, folder.read_bytes("model.safetensors", 0)
    assert (card["bytes"], card["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(data) <= 5_000_000 and len(card["limits"]) >= 3
    judged, summary = card["evaluated"], open_run(NAME).summary
    assert judged["test_accuracy"] == judged["right"] / judged["images"] == summary.test_accuracy
    assert tuple(judged["interval_95"]) == summary.test_interval_95


def test_the_page_says_what_the_card_says() -> None:
    card, page = packaged.PackagedFolder("cifar10").card, " ".join(PAGE.read_text("utf-8").split())
    judged, trained = card["evaluated"], card["trained"]
    low, high = judged["interval_95"]
    for words in (
        card["sha256"],
        f"{judged['test_accuracy']:.2%} ({low:.2%} to {high:.2%})",
        f"{judged['test_accuracy_tta']:.2%}",
        f"{card['bytes']:,} bytes",
        f"{card['parameters']:,} parameters",
        trained["command"],
        trained["hardware"],
        f"{trained['test_accuracy']:.2%}",
        *card["limits"],
        *(f"| {name} | {recall:.1%} |" for name, recall in judged["recall"].items()),
    ):
        assert words in page, words


@pytest.mark.soak  # 10,000 images in fp32 take a minute of a core
def test_evaluate_gives_the_cards_number_exactly(cifar_folder: Path) -> None:
    card = packaged.PackagedFolder("cifar10").card["evaluated"]
    evaluation = firstlight.evaluate(NAME, data_dir=cifar_folder)
    assert (evaluation.right, len(evaluation.labels)) == (card["right"], card["images"])
    assert list(evaluation.interval) == card["interval_95"]
    assert f"{evaluation.loss:.4f}" == f"{card['test_loss']:.4f}"


def test_it_is_judged_on_a_cpu_in_fp32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from firstlight.data.images import ImageSet

    class Chosen(Exception):
        pass

    def choose(device: str, precision: str) -> None:
        raise Chosen(device, precision)

    monkeypatch.setattr("firstlight.run.choose", choose)
    run = open_run(NAME)
    pixels, facts = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), run.data
    images = ImageSet(pixels, torch.tensor([0, 1]), facts.classes, facts.mean, facts.std, ["a", "b"])
    for options, chosen in (({}, ("cpu", "fp32")), ({"precision": "bf16"}, ("auto", "bf16"))):
        with pytest.raises(Chosen) as raised:
            run.evaluate(images, **options)
        assert raised.value.args == chosen


def test_predict_names_the_class_of_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40), (120, 170, 240)).save(tmp_path / "sky.png")
    code, said, _ = in_shell(capsys, "predict", NAME, tmp_path / "sky.png")
    assert code == 0 and said.count("%") == 3 and "sky.png" in said


def test_it_is_exported_beside_the_user_and_not_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    made = firstlight.export(NAME)
    assert made.path == Path("cifar10-model.onnx") and made.path.is_file() and made.script.is_file()
    assert made.images == 200 and made.difference <= 1e-5
    import onnx

    properties = {each.key: each.value for each in onnx.load(made.path).metadata_props}
    assert json.loads(properties["test_accuracy"]) == open_run(NAME).summary.test_accuracy


def test_an_unknown_name_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = in_shell(capsys, "predict", "pretrained:cifra10", "some.png")
    assert code == 2 and "no pretrained network 'cifra10'" in error and f"Did you mean '{NAME}'?" in error


def test_altered_weights_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(packaged._room(), tmp_path / "room")
    weights = copy / "cifar10/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    monkeypatch.setattr(packaged, "_room", lambda: copy)
    with pytest.raises(InputError, match="altered"):
        open_run(NAME).model  # noqa: B018 - reading is what is tested


def test_its_report_is_its_card_and_its_mistakes_where_the_images_are_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.data.cifar10 import CLASSES, MEAN, STD, Cifar10
    from firstlight.data.images import ImageSet

    def load(self: Cifar10, data_dir: Path | None = None) -> tuple[ImageSet, ImageSet]:
        pixels = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "test"))
        images = ImageSet(pixels, torch.arange(60) % 10, CLASSES, MEAN, STD, [f"{n}" for n in range(60)])
        return images, images

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRSTLIGHT_CACHE", f"{tmp_path}-cache")  # no other test has filled it
    monkeypatch.setattr(Cifar10, "load", load)
    before = sorted(packaged._room().rglob("*"))
    card = packaged.PackagedFolder("cifar10").card
    code, said, _ = in_shell(capsys, "report", NAME)  # nothing is downloaded
    alone = Path("cifar10-report.html").read_text("utf-8")
    assert code == 0 and said.startswith("cifar10-report.html\n") and "--data-dir" in said
    assert all(limit in html.unescape(alone) for limit in card["limits"])
    assert "93.46%" in alone and card["sha256"] in alone
    assert 'id="confusion"' not in alone and 'id="curves"' not in alone
    code, _, error = in_shell(capsys, "report", NAME)
    assert code == 2 and "is there already" in error
    Path("cifar10-report.html").unlink()
    code, said, _ = in_shell(capsys, "report", NAME, "--data-dir", tmp_path)
    page = Path("cifar10-report.html").read_text("utf-8")
    assert code == 0 and said.splitlines() == ["cifar10-report.html"]
    assert 'id="confusion"' in page and 'id="sheet"' in page and 'id="curves"' not in page
    assert "mistakes.csv" not in page and "firstlight suspects" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10-report.html"]
    assert sorted(packaged._room().rglob("*")) == before


def test_nothing_is_written_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(packaged._room().rglob("*"))
    code, _, error = in_shell(capsys, "suspects", NAME)
    assert code == 2 and "comes with the package" in error and "firstlight train" in error, error
    assert sorted(packaged._room().rglob("*")) == before and not list(tmp_path.iterdir())


def test_the_report_of_a_run_asks_for_no_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = in_shell(capsys, "report", trained, "--data-dir", tmp_path)
    assert code == 2 and "keeps what its page shows" in error
