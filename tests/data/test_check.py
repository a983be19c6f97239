"""The folder check finds what was planted and invents nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from folders import folder, picture
from PIL import Image

import firstlight
from firstlight.cli import main


def clean(root: Path) -> Path:
    return folder(root, {"train/cat": 12, "train/dog": 12, "test/cat": 12, "test/dog": 12})


def kinds(root: Path) -> set[str]:
    return {finding.kind for finding in firstlight.check(root).findings}


def test_nothing_is_found_in_a_clean_folder(tmp_path: Path) -> None:
    assert kinds(clean(tmp_path)) == set()


def plant(root: Path, kind: str) -> None:
    first = root / "train/cat/0.png"
    match kind:
        case "unreadable":
            first.write_bytes(first.read_bytes()[:90])
        case "exact duplicate":
            shutil.copy(first, root / "train/cat/copy.png")
        case "two labels":
            shutil.copy(first, root / "train/dog/copy.png")
        case "train and test":
            shutil.copy(first, root / "test/cat/copy.png")
        case "near duplicate":
            smooth = Image.open(picture(first, size=(8, 6))).resize((160, 144), Image.Resampling.BICUBIC)
            smooth.save(first)
            smooth.save(root / "train/cat/copy.jpg", quality=60)
        case "blank":
            Image.new("RGB", (40, 40), "red").save(first)
        case "twin classes":
            folder(root, {"train/Cat ": 12, "test/Cat ": 12})
        case "not in test" | "tiny class":
            picture(root / "train/owl/0.png")
        case "left out":
            (root / "train/cat/.hidden").write_text("x")


@pytest.mark.parametrize(
    "kind",
    ["unreadable", "exact duplicate", "two labels", "train and test", "near duplicate", "blank",
     "twin classes", "not in test", "tiny class", "left out"],
)  # fmt: skip
def test_a_planted_defect_is_found_and_named(tmp_path: Path, kind: str) -> None:
    plant(clean(tmp_path), kind)
    assert kind in kinds(tmp_path)


def test_strict_ends_with_1_where_something_is_wrong_and_json_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(tmp_path)
    for planted, code in ((False, 0), (True, 1)):
        if planted:
            plant(tmp_path, "two labels")
        with pytest.raises(SystemExit) as end:
            main(["check", str(tmp_path), "--json", "--strict"])
        assert end.value.code == code
        assert bool(json.loads(capsys.readouterr().out)["findings"]) is planted
