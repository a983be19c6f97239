"""Run folders from strangers: every crafted value is refused in one line, or named on the page as a gap."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peak import assert_one_line, bounded, shell
from PIL import Image
from safetensors.torch import load_file, save_file

from firstlight.errors import InputError
from firstlight.page.page import write_page
from firstlight.run import Run, open_run

Change = Callable[[Path], None]
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 5000


def put(file: str, *path: object, value: Any) -> Change:
    """Set one value inside a JSON file; the first key of the recipe's file is "recipe"."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / file).write_text(json.dumps(values))

    return change


def text(file: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    return lambda folder: (folder / file).write_bytes(data) and None


def tensor(file: str, key: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    def change(folder: Path) -> None:
        tensors = {name: value.clone() for name, value in load_file(folder / file).items()}
        made = make(tensors.pop(key))
        if made is not None:
            tensors[key] = made.contiguous()
        save_file(tensors, folder / file)

    return change


def header(declared: int, content: bytes) -> bytes:
    return struct.pack("<Q", declared) + content


def one_tensor(dtype: str, shape: list[int], offsets: list[int], data: bytes = b"\0" * 16) -> bytes:
    values = json.dumps({"labels": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return header(len(values), values) + data


def link(name: str, target: str) -> Change:
    """Put a link in the place of a file or folder of the run; {out} is a folder beside it."""

    def change(folder: Path) -> None:
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(target.format(out=folder.parent / "outside"))

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def sparse(name: str, size: int) -> Change:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return change


def rows(*lines: dict[str, Any] | str) -> Change:
    return text("history.jsonl", "\n".join(e if isinstance(e, str) else json.dumps(e) for e in lines) + "\n")


EPOCH = {
    **{"epoch": 1, "step": 6, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5},
    **{"images_per_second": 10.0, "train_seconds": 1.0},
}
SAFE = ("model.safetensors", "predictions.safetensors", "pictures.safetensors", "samples.safetensors")
RECIPE, ENV = ("recipe.json", "recipe"), ("environment.json", "data")

REFUSED: dict[str, Change] = {
    "recipe nested 100,000 deep": text("recipe.json", DEEP),
    "recipe nested deep in a field": text("recipe.json", f'{{"schema": 2, "recipe": {DEEP}}}'),
    "recipe is a list": text("recipe.json", "[1]"),
    "recipe is empty": text("recipe.json", ""),
    "recipe is not UTF-8": text("recipe.json", b"\xff\xfe{}"),
    "recipe holds a number of 5,000 digits": text("recipe.json", f'{{"schema": {HUGE}}}'),
    "recipe's version is a list": text("recipe.json", '{"schema": [2]}'),
    "recipe's version is infinite": text("recipe.json", '{"schema": Infinity}'),
    "recipe's parts are missing": put("recipe.json", "recipe", value={}),
    "recipe is a number": put("recipe.json", "recipe", value=3),
    "recipe's model is a list": put(*RECIPE, "model", value=[]),
    "recipe's model has a type that is a list": put(*RECIPE, "model", value={"type": []}),
    "recipe's network is wider than any memory": put(*RECIPE, "model", "width", value=2**40),
    "recipe's width is below zero": put(*RECIPE, "model", "width", value=-1),
    "recipe's width is NaN": put(*RECIPE, "model", "width", value=float("nan")),
    "recipe's width is a text": put(*RECIPE, "model", "width", value="64"),
    "recipe has an unknown field": put(*RECIPE, "surprise", value=1),
    "recipe's epochs are 10¹²": put(*RECIPE, "epochs", value=10**12),
    "recipe's epochs are true": put(*RECIPE, "epochs", value=True),
    "recipe's batches have 10³⁰ images": put(*RECIPE, "batch_size", value=10**30),
    "recipe's sides are a text": put(*RECIPE, "sides", value="32"),
    "recipe's sides are 10⁹": put(*RECIPE, "sides", value=[10**9]),
    "recipe's augmentation is a number": put(*RECIPE, "augment", value=5),
    "recipe has a hundred augmentations": put(*RECIPE, "augment", value=[{"type": "FlipLR"}] * 100),
    "recipe pads by 10⁹ pixels": put(*RECIPE, "augment", value=[{"type": "Crop", "size": 32, "pad": 10**9}]),
    "recipe's rate is infinite": put(*RECIPE, "schedule", "peak_lr", value=float("inf")),
    "recipe's name is an object": put(*RECIPE, "name", value={}),
    "recipe's name has 10⁵ letters": put(*RECIPE, "name", value="n" * 10**5),
    "recipe draws 10¹² images": put(*RECIPE, "data", "train", value=10**12),
    "recipe is a link out of the folder": link("recipe.json", "{out}/recipe.json"),
    "recipe is a named pipe": pipe("recipe.json"),
    "recipe holds 100 GB": sparse("recipe.json", 10**11),
}
"""What no verb opens."""

GAPS: dict[str, tuple[str, Change]] = {
    # section of the page that names it, and the change
    "environment nested deep": ("environment", text("environment.json", f'{{"data": {DEEP}}}')),
    "environment is a text": ("environment", text("environment.json", '"data"')),
    "environment holds an object": (
        "environment",
        put("environment.json", "hardware", value={"a": {"b": 1}}),
    ),
    "a text of a megabyte": ("environment", put("environment.json", "hardware", value="x" * 2**20)),
    "data is a list": ("environment", put("environment.json", "data", value=[1])),
    "no classes": ("environment", put(*ENV, "classes", value=[])),
    "classes are numbers": ("environment", put(*ENV, "classes", value=[1, 2])),
    "a class twice": ("environment", put(*ENV, "classes", value=["a", "a"])),
    "a hundred thousand classes": ("environment", put(*ENV, "classes", value=[*map(str, range(10**5))])),
    "images of 10⁹ pixels": ("environment", put(*ENV, "shape", value=[3, 10**9, 10**9])),
    "images of half a pixel": ("environment", put(*ENV, "shape", value=[3, 0.5, 32])),
    "images of two sizes": ("environment", put(*ENV, "shape", value=[3, 32])),
    "a thousand channels": ("environment", put(*ENV, "shape", value=[1000, 32, 32])),
    "a mean too few": ("environment", put(*ENV, "mean", value=[0.5])),
    "a mean of NaN": ("environment", put(*ENV, "mean", value=[float("nan")] * 3)),
    "a deviation of zero": ("environment", put(*ENV, "std", value=[0.0] * 3)),
    "a mean of 10⁴⁰⁰": ("environment", put(*ENV, "mean", value=[10**400] * 3)),
    "environment behind a link": ("environment", link("environment.json", "{out}/secret.json")),
    "history is no JSON": ("history", rows("{")),
    "history nested deep": ("history", rows(DEEP)),
    "history's row is a list": ("history", rows("[]")),
    "history lacks its loss": ("history", rows({"epoch": 1})),
    "history's loss is a text": ("history", rows({**EPOCH, "train_loss": "low"})),
    "history's rate is NaN": ("history", rows({**EPOCH, "lr": float("nan")})),
    "history's accuracy is 17": ("history", rows({**EPOCH, "train_accuracy": 17})),
    "history's step is 0": ("history", rows({**EPOCH, "step": 0})),
    "history's step is 10³⁰": ("history", rows({**EPOCH, "step": 10**30})),
    "history's epoch is true": ("history", rows({**EPOCH, "epoch": True})),
    "history goes back": ("history", rows({**EPOCH, "epoch": 2}, EPOCH)),
    "predictions are empty": ("predictions", text(SAFE[1], b"")),
    "a header longer than the file": ("predictions", text(SAFE[1], header(2**62, b"{}"))),
    "a header of 2⁶⁴ − 1": ("predictions", text(SAFE[1], header(2**64 - 1, b"{}"))),
    "a header nested deep": ("predictions", text(SAFE[1], header(200_000, DEEP.encode()))),
    "a tensor of 2⁶² values": ("predictions", text(SAFE[1], one_tensor("F32", [2**31, 2**31], [0, 16]))),
    "a shape that overflows": ("predictions", text(SAFE[1], one_tensor("F32", [2**33, 2**33], [0, 0]))),
    "offsets below zero": ("predictions", text(SAFE[1], one_tensor("F32", [4], [-16, 0]))),
    "offsets beyond the file": ("predictions", text(SAFE[1], one_tensor("F32", [4], [2**40, 2**40 + 16]))),
    "a type that is unknown": ("predictions", text(SAFE[1], one_tensor("F99", [4], [0, 16]))),
    "a shape that is a text": (
        "predictions",
        text(SAFE[1], one_tensor("F32", "4", [0, 16])),  # type: ignore[arg-type]
    ),
    "labels beyond the classes": ("predictions", tensor(SAFE[1], "labels", lambda t: t + 1000)),
    "labels below zero": ("predictions", tensor(SAFE[1], "labels", lambda t: t - 1000)),
    "labels are real numbers": ("predictions", tensor(SAFE[1], "labels", lambda t: t.float())),
    "labels in two rows": ("predictions", tensor(SAFE[1], "labels", lambda t: t.view(2, -1))),
    "labels are one number": ("predictions", tensor(SAFE[1], "labels", lambda t: t[0])),
    "no labels": ("predictions", tensor(SAFE[1], "labels", lambda t: None)),
    "no images at all": ("predictions", tensor(SAFE[1], "labels", lambda t: t[:0])),
    "probabilities of NaN": ("predictions", tensor(SAFE[1], "probabilities", lambda t: t * float("nan"))),
    "probabilities of 7": ("predictions", tensor(SAFE[1], "probabilities", lambda t: t + 7)),
    "probabilities of a class too few": ("predictions", tensor(SAFE[1], "probabilities", lambda t: t[:, 1:])),
    "probabilities are whole": ("predictions", tensor(SAFE[1], "probabilities", lambda t: t.long())),
    "probabilities are complex": (
        "predictions",
        tensor(SAFE[1], "probabilities", lambda t: t.to(torch.complex64)),
    ),
    "predictions behind a link": ("predictions", link(SAFE[1], "{out}/x.safetensors")),
    "predictions without end": ("predictions", link(SAFE[1], "/dev/zero")),
    "predictions are a pipe": ("predictions", pipe(SAFE[1])),
    "predictions of a terabyte": ("predictions", sparse(SAFE[1], 10**12)),
    "pictures of another size": ("images", tensor(SAFE[2], "images", lambda t: t[..., 1:])),
    "pictures in real numbers": ("images", tensor(SAFE[2], "images", lambda t: t.float())),
    "pictures beyond the set": ("images", tensor(SAFE[2], "indices", lambda t: t + 10**12)),
    "pictures below zero": ("images", tensor(SAFE[2], "indices", lambda t: t - 1000)),
    "a picture twice": ("images", tensor(SAFE[2], "indices", lambda t: t * 0)),
    "an index too few": ("images", tensor(SAFE[2], "indices", lambda t: t[1:])),
    "samples of another size": ("film", tensor(SAFE[3], "images", lambda t: t[:, :1])),
    "samples' labels beyond": ("film", tensor(SAFE[3], "labels", lambda t: t + 1000)),
    "draws beyond the image": ("film", tensor(SAFE[3], "draws_0", lambda t: t + 10**6)),
    "draws beyond 64 bits' sense": ("film", tensor(SAFE[3], "draws_0", lambda t: t + 2**40)),
    "draws in real numbers": ("film", tensor(SAFE[3], "draws_0", lambda t: t.float())),
    "draws with a column too few": ("film", tensor(SAFE[3], "draws_0", lambda t: t[:, :1])),
    "draws for fewer images": ("film", tensor(SAFE[3], "draws_0", lambda t: t[1:])),
    "weights are cut off": ("heat", sparse(SAFE[0], 1000)),
    "weights of another network": ("heat", put(*RECIPE, "model", "width", value=3)),
    "weights of a network of terabytes": ("heat", put(*RECIPE, "model", "width", value=8000)),
    "weights behind a link": ("heat", link(SAFE[0], "{out}/x.safetensors")),
    "weights lack a layer": ("heat", tensor(SAFE[0], "linear.weight", lambda t: None)),
    "weights of one layer are transposed": ("heat", tensor(SAFE[0], "linear.weight", lambda t: t.T)),
    "suspects are a text": ("suspects", text("suspects.safetensors", b"x" * 100)),
    "a finding is a list": ("finding", text("finding.json", "[]")),
    "a finding lacks its rates": ("finding", text("finding.json", '{"peak_lr": 1}')),
    "names are a named pipe": ("names", pipe("mistakes.csv")),
    "names are behind a link": ("names", link("mistakes.csv", "{out}/secret.csv")),
}
"""What the rest of a run opens without, and its page names."""


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text("index,name\n0,the secret\n")
    (outside / "secret.json").write_text('{"hardware": "the secret"}')
    shutil.copy(trained / "recipe.json", outside)
    return shutil.copytree(trained, tmp_path / "run")


def tree(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.mark.parametrize("name", REFUSED)
def test_a_crafted_recipe_is_refused_in_one_line_by_every_verb(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], record_property: object
) -> None:
    REFUSED[name](folder)
    outside = tree(folder.parent / "outside")
    Image.new("RGB", (32, 32)).save(folder.parent / "picture.png")
    with bounded(record_property):
        for words in (
            ("report", folder),
            ("compare", folder, folder),
            ("predict", folder, folder.parent / "picture.png"),
            ("evaluate", folder, "--device", "cpu", "--precision", "fp32"),
            ("suspects", folder, "--device", "cpu", "--precision", "fp32"),
            ("train", "shapes.demo", "--resume", "--out", folder),
        ):
            code, _, error = shell(capsys, *words)
            if code or words[0] != "compare":  # which needs no recipe
                assert_one_line(code, error)
    assert tree(folder.parent / "outside") == outside
    assert not list(folder.rglob("*.aside"))


@pytest.mark.parametrize("name", GAPS)
def test_a_crafted_result_is_named_on_the_page_and_nothing_else_is_lost(
    folder: Path, name: str, record_property: object
) -> None:
    section, change = GAPS[name]
    change(folder)
    outside = tree(folder.parent / "outside")
    with bounded(record_property):
        page = write_page(open_run(folder)).read()
    assert "the secret" not in page and tree(folder.parent / "outside") == outside
    from firstlight.page.page import PageData

    gap = PageData.of(open_run(folder)).gaps[section]
    assert 10 < len(gap) < 500 and gap.isprintable()


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("predict", "images of 10⁹ pixels"),
        ("predict", "weights are cut off"),
        ("predict", "weights of a network of terabytes"),
        ("predict", "weights of one layer are transposed"),
        ("evaluate", "weights behind a link"),
        ("evaluate", "a mean of NaN"),
        ("compare", "labels beyond the classes"),
        ("compare", "a header of 2⁶⁴ − 1"),
        ("compare", "names are a named pipe"),
        ("suspects", "data is a list"),
    ],
)
def test_a_verb_that_needs_a_crafted_result_refuses_it_in_one_line(
    folder: Path, verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GAPS[name][1](folder)
    Image.new("RGB", (32, 32)).save(folder.parent / "picture.png")
    more = {
        "predict": (folder.parent / "picture.png",),
        "compare": (folder,),
        "evaluate": ("--device", "cpu", "--precision", "fp32"),
        "suspects": ("--device", "cpu", "--precision", "fp32"),
    }
    code, _, error = shell(capsys, verb, folder, *more[verb])
    assert_one_line(code, error)


@pytest.mark.parametrize("name", ["figures", "figures/confusion.png", "report.html"])
def test_report_writes_nothing_through_a_link(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = folder.parent / "outside"
    target = outside if name == "figures" else outside / "mine.txt"
    (outside / "mine.txt").write_text("mine")
    link(name, str(target))(folder)
    before = tree(outside)
    code, _, error = shell(capsys, "report", folder)
    assert tree(outside) == before
    if name == "figures":  # a folder that is a link is refused; a file that is one is replaced by a file
        assert_one_line(code, error)
        assert "link" in error
    else:
        assert code == 0 and not (folder / name).is_symlink()


def test_the_command_on_the_page_is_built_from_the_recipe_and_not_read(folder: Path) -> None:
    put("environment.json", "command", value="firstlight train x; rm -rf ~")(folder)
    page = write_page(open_run(folder)).read()
    assert "rm -rf" not in page and "firstlight train shapes.demo" in page
    put(*RECIPE, "model", value={"type": "OwnNetwork", "name": "os.system"})(folder)
    assert '<code id="command">' not in write_page(open_run(folder)).read()


def test_a_part_that_is_not_built_in_is_never_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    put(*RECIPE, "model", value={"type": "OwnNetwork", "name": "evil.Net"})(folder)
    run = open_run(folder)
    assert write_page(run).path.is_file()
    with pytest.raises(InputError, match="no part of Firstlight"):
        _ = run.model


def state(**changes: Any) -> dict[str, Any]:
    """What a checkpoint holds besides tensors, with changes."""
    return {"history": [], "state": {"step": 1, "seconds": 0, "optimizer": {}, **changes}}


CHECKPOINTS: dict[str, Any] = {
    "history is a text": {"state": {}, "history": "x"},
    "state is missing": {"history": []},
    "state is a list": {"history": [], "state": []},
    "step is a text": state(step="x"),
    "step is below zero": state(step=-5),
    "step is beyond the end": state(step=10**9),
    "seconds are NaN": state(seconds=float("nan")),
    "optimizer is a text": state(optimizer="x"),
    "optimizer of weight 10⁶": state(optimizer={"1000000.a": 1}),
    "optimizer's slot has no name": state(optimizer={"0": 1}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_crafted_checkpoint_is_refused_in_one_line(folder: Path, name: str) -> None:
    from tiny import CPU

    from firstlight.training.state import TrainState, capture

    run = Run(open_run(folder).folder)
    fresh = TrainState.create(run.model, run.recipe.optimizer, CPU)
    captured = capture(fresh)
    (folder / "checkpoints").mkdir()
    run.checkpoints.save(1, captured.tensors, CHECKPOINTS[name])
    with pytest.raises(InputError, match="checkpoint"):
        run.restore(fresh, 100)


def test_a_checkpoint_behind_a_link_is_not_read(folder: Path) -> None:
    outside = folder.parent / "outside"
    run = Run(open_run(folder).folder)
    run.checkpoints.save(1, {"x": torch.ones(1)}, {})
    (folder / "checkpoints").rename(outside / "checkpoints")
    (folder / "checkpoints").symlink_to(outside / "checkpoints")
    assert run.checkpoints.last() is None
    run.remove_checkpoints()
    assert list((outside / "checkpoints").iterdir()) and not (folder / "checkpoints").exists()
