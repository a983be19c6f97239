"""The page of a folder check: where it is written, what it shows, and that it is one file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import firstlight
from firstlight.cli import main


def pictures(root: Path) -> Path:
    draws = np.random.default_rng(0)
    for label in ("cat", "<b>dog"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            noise = draws.integers(0, 255, (60, 80, 3)).astype(np.uint8)
            Image.fromarray(noise).save(root / label / f"{number}.png")
    shutil.copy(root / "cat/0.png", root / "<b>dog/copy.png")
    (root / "cat/broken <i>.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return pictures(tmp_path / "my photos")


def test_the_page_lies_in_runs_and_shows_both_pictures_of_two_labels(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    result = firstlight.check(root)
    assert result.page == "runs/check-my-photos/check.html"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    text = Path(result.page).read_text(encoding="utf-8")
    section = re.search(r"Two labels.*?</section>", text, re.DOTALL)
    assert section is not None and section[0].count("data:image/jpeg;base64,") == 2
    assert "cat/0.png" in section[0] and "&lt;b&gt;dog/copy.png" in section[0]
    assert "cat/broken &lt;i&gt;.jpg" in text and "<i>" not in text and "<b>dog" not in text


def test_the_page_is_one_file_without_scripts_under_a_strict_policy(root: Path) -> None:
    text = Path(str(firstlight.check(root).page)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith(
        "default-src 'none'; img-src data:; style-src 'sha256-"
    )
    assert not re.search(r"<script|https?://|\son\w+=|\sstyle=", text)
    assert all(uri.startswith("data:") for uri in re.findall(r'src="([^"]*)"', text))


def test_an_earlier_page_is_replaced_and_another_file_is_not(root: Path) -> None:
    out = root.parent / "page.html"
    for _ in range(2):
        assert firstlight.check(root, out=out).page == str(out)
    out.write_text("my own page")
    with pytest.raises(firstlight.InputError, match="exists already"):
        firstlight.check(root, out=out)
    assert out.read_text() == "my own page"


def test_no_page_is_written_among_the_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(firstlight.InputError, match="among the pictures"):
        firstlight.check(root, out=root / "check.html")
    monkeypatch.chdir(root)
    assert firstlight.check(".").page is None
    assert not list(root.rglob("*.html"))


def test_the_shell_names_the_page_and_json_stays_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ((), ("--json",)):
        with pytest.raises(SystemExit) as end:
            main(["check", str(root), "--out", "seen.html", *options])
        assert end.value.code == 0 and Path("seen.html").is_file()
        text = capsys.readouterr().out
        assert json.loads(text)["page"] == "seen.html" if options else "page: seen.html" in text


def test_a_set_that_cannot_be_listed_has_a_page_that_says_why(root: Path) -> None:
    empty = root.parent / "empty"
    empty.mkdir()
    text = Path(str(firstlight.check(empty).page)).read_text(encoding="utf-8")
    assert "No training set" in text and "Holds no pictures in class folders" in text
