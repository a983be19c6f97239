"""Two whole sets of pictures: of one every defect is found and named, of the other nothing is said."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import scene
from PIL import Image, ImageDraw, ImageFont, ImageOps

from firstlight.cli import main
from firstlight.data.check import Check, check
from firstlight.errors import InputError


class Messy:
    """A set divided into train and test, with defects; `planted` says in which finding each file must be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.planted: list[tuple[str, str, frozenset[str]]] = []
        self._next = 0

    def scene(self) -> Image.Image:
        self._next += 1
        return scene(self._next)

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, picture: Image.Image | None = None, **options: object) -> Image.Image:
        picture = picture or self.scene()
        picture.save(self.path(name), **options)  # type: ignore[arg-type]
        return picture

    def plant(self, defect: str, kind: str, *names: str) -> None:
        """Say that these names must stand together in one group of a finding of this kind."""
        self.planted.append((defect, kind, frozenset(names)))

    def broken(self, defect: str, name: str, data: bytes) -> None:
        self.path(name).write_bytes(data)
        self.plant(defect, "unreadable", name)

    def copy(self, defect: str, kind: str, change: Callable[[Image.Image], Image.Image], other: str) -> None:
        """Save a picture and a changed copy of it: `other` is "class/name" of the copy."""
        first = f"train/cat/{Path(other).stem} first.png"
        picture = self.save(first)
        options = {"quality": 40} if other.endswith(".jpg") else {}
        self.save(f"train/{other}", change(picture), **options)
        self.plant(defect, kind, first, f"train/{other}")


def encoded(picture: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()


def turned(picture: Image.Image, orientation: int, path: Path) -> None:
    """Save a picture so that only the turn of its metadata makes it upright; no pixel is lost."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def messy(root: Path) -> Messy:
    made = Messy(root)
    for label in ("cat", "dog"):
        for number in range(25):
            made.save(f"train/{label}/{number}.png")
        for number in range(4):
            made.save(f"test/{label}/{number}.png")
    # Files that no picture comes out of.
    jpeg, png = encoded(made.scene(), "JPEG"), encoded(made.scene(), "PNG")
    made.broken("a JPEG file cut short", "train/cat/short.jpg", jpeg[: len(jpeg) // 2])
    made.broken("a PNG file cut short", "train/cat/short.png", png[: len(png) // 2])
    made.broken("zero bytes", "train/cat/zeros.jpg", bytes(5000))
    made.broken("a web page", "train/cat/page.jpg", b"<!doctype html><html>no such picture</html>")
    made.broken("HEIC", "train/cat/phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    made.broken("EPS", "train/cat/logo.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    made.broken("a Git LFS pointer", "train/cat/lfs.png", b"version https://git-lfs.github.com/spec/v1\n")
    made.broken("text", "train/cat/words.png", b"these are only words, no pixels at all")
    made.broken("a damaged PNG file", "train/cat/damaged.png", png[:60] + bytes(200) + png[260:])
    # What the listing leaves out.
    for defect, name, data in (
        ("an empty file", "train/cat/empty.jpg", b""),
        ("a hidden file", "train/cat/.hidden.png", png),
        ("a file of the system", "train/cat/Thumbs.db", b"x"),
        ("a side file", "train/cat/readme.txt", b"x"),
        ("a picture in no class", "train/lost.png", png),
        ("a picture beside train and test", "stray/lost.png", png),
    ):
        made.path(name).write_bytes(data)
        made.plant(defect, "left out", name)
    os.symlink("gone.png", made.path("train/cat/broken link.png"))
    made.plant("a broken link", "left out", "train/cat/broken link.png")
    # Classes.
    made.path("train/nothing").mkdir()
    made.plant("an empty class", "empty class", "train/nothing")
    for number in range(2):
        made.save(f"train/owl/{number}.png")
    made.plant("a class without test images", "not in test", "owl")
    made.plant("a tiny class", "tiny class", "owl")
    for number in range(12):
        made.save(f"train/Dog /{number}.png")
    made.save("test/Dog /0.png")
    made.plant("twins of class names", "twin classes", "dog", "Dog ")
    made.plant("imbalance", "imbalance", "cat", "owl")
    # Copies.
    made.copy(
        "the same pixels in another format", "exact duplicate", lambda picture: picture, "cat/other.bmp"
    )
    made.copy("recompressed", "near duplicate", lambda picture: picture, "cat/recompressed.jpg")
    made.copy("half size", "near duplicate", lambda picture: picture.reduce(2), "cat/half.png")
    made.copy("slightly cropped", "near duplicate", lambda p: p.crop((8, 6, 248, 186)), "cat/cropped.png")
    made.copy("mirrored", "near duplicate", ImageOps.mirror, "cat/mirrored.png")
    made.copy("mirrored in another class", "mirrored", ImageOps.mirror, "dog/mirrored across.png")
    made.copy("nearly the same with two labels", "two labels", lambda p: p.reduce(2), "dog/near.png")
    shutil.copy(made.path("train/cat/0.png"), made.path("train/cat/copy.png"))
    made.plant("the same bytes", "exact duplicate", "train/cat/0.png", "train/cat/copy.png")
    shutil.copy(made.path("train/cat/1.png"), made.path("train/dog/copy.png"))
    made.plant("two labels", "two labels", "train/cat/1.png", "train/dog/copy.png")
    shutil.copy(made.path("train/cat/2.png"), made.path("test/cat/copy.png"))
    made.plant("train and test", "train and test", "train/cat/2.png", "test/cat/copy.png")
    turned(made.save("train/dog/upright.png"), 6, made.path("train/dog/turned.png"))
    made.plant("a copy turned by EXIF", "exact duplicate", "train/dog/upright.png", "train/dog/turned.png")
    made.plant("a turn", "EXIF turn", "train/dog/turned.png")
    picture = made.scene()
    turned(picture, 6, made.path("train/dog/tagged.png"))
    made.save("train/dog/untagged.png", picture.transpose(Image.Transpose.ROTATE_90))
    made.plant("a copy that lost its turn", "turned copy", "train/dog/tagged.png", "train/dog/untagged.png")
    burst = made.scene()
    for number in range(4):
        made.save(f"train/cat/burst {number}.jpg", burst, quality=90 - 10 * number)
    made.plant("a burst", "burst", *(f"train/cat/burst {number}.jpg" for number in range(4)))
    # Pictures that are unlike the others.
    for defect, kind, name, odd in (
        ("one colour", "blank", "blank.png", Image.new("RGB", (256, 192), "red")),
        ("grey", "grey", "grey.png", made.scene().convert("L")),
        ("grey saved as colour", "grey", "grey.jpg", made.scene().convert("L").convert("RGB")),
        ("small", "odd size", "small.png", made.scene().resize((40, 30))),
        ("a panorama", "odd shape", "panorama.png", made.scene().resize((900, 200))),
        ("cut by crop", "cut by crop", "broad.png", made.scene().resize((400, 200))),
        ("inks", "CMYK", "inks.jpg", made.scene().convert("CMYK")),
    ):
        made.save(f"train/dog/{name}", odd)
        made.plant(defect, kind, f"train/dog/{name}")
    grey = np.asarray(made.scene().convert("L"))
    made.save("train/dog/deep.png", Image.fromarray(grey.astype(np.uint16) * 257))
    made.plant("16 bits", "16-bit", "train/dog/deep.png")
    clear = made.scene().convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8), (192, 1))))
    made.save("train/dog/clear.png", clear)
    made.plant("transparency", "transparent", "train/dog/clear.png")
    made.path("train/dog/false.jpg").write_bytes(encoded(made.scene(), "PNG"))
    made.plant("a wrong suffix", "wrong suffix", "train/dog/false.jpg")
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Messy, Check]:
    set_of_pictures = messy(tmp_path_factory.mktemp("messy"))
    return set_of_pictures, check(set_of_pictures.root)


def test_every_planted_defect_is_found_and_its_files_are_named(made: tuple[Messy, Check]) -> None:
    planted, result = made
    found = {(each.kind, frozenset(group)) for each in result.findings for group in each.groups}
    missing = [(defect, kind) for defect, kind, names in planted.planted if (kind, names) not in found]
    assert missing == []
    assert len({defect for defect, _, _ in planted.planted}) >= 25


def test_nothing_is_found_beyond_what_was_planted(made: tuple[Messy, Check]) -> None:
    planted, result = made
    expected = {(kind, names) for _, kind, names in planted.planted}
    # What follows from the planted: some copies and odd pictures are odd in a second way.
    expected |= {
        ("near duplicate", frozenset({"train/cat/near first.png", "train/dog/near.png"})),
        ("exact duplicate", frozenset({"train/cat/1.png", "train/dog/copy.png"})),
        ("exact duplicate", frozenset({"train/cat/2.png", "test/cat/copy.png"})),
        ("cut by crop", frozenset({"train/dog/panorama.png"})),
        ("EXIF turn", frozenset({"train/dog/tagged.png"})),
        ("grey", frozenset({"train/dog/deep.png"})),
    }
    found = {(each.kind, frozenset(group)) for each in result.findings for group in each.groups}
    assert found - expected == set()


def test_a_file_of_a_foreign_kind_comes_with_what_to_do(made: tuple[Messy, Check]) -> None:
    advice = {each.groups[0][0]: each.advice for each in made[1].findings if each.kind == "unreadable"}
    assert "Convert it to JPEG" in advice["train/cat/phone.jpg"]
    assert "git lfs pull" in advice["train/cat/lfs.png"]


def digits(root: Path, count: int) -> None:
    """Write different digits in black on white: of another size, slant and place each."""
    draws = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number in range(count):
        picture = Image.new("L", (128, 128), "white")
        font = ImageFont.load_default(int(draws.integers(50, 100)))
        place = tuple(map(int, draws.integers(10, 50, 2)))
        ImageDraw.Draw(picture).text(place, str(number % 10), "black", font)
        angle = float(draws.uniform(-20, 20))
        picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white").save(root / f"{number}.png")


def clean(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    draws = np.random.default_rng(1)
    colours = draws.permutation(16**3)[:200]
    digits(root / "digits", 200)
    (root / "colours").mkdir()
    for number, colour in enumerate(colours):
        levels = colour // 256 * 16, colour // 16 % 16 * 16, colour % 16 * 16
        Image.new("RGB", (128, 128), tuple(map(int, levels))).save(root / "colours" / f"{number}.png")
    for label in ("meadow", "harbour"):
        (root / label).mkdir()
        for number in range(60):
            seed = 1000 + number + 500 * (label == "meadow")
            scene(seed).resize((160, 140)).save(root / label / f"{number}.jpg", quality=92)
    return root


def test_nothing_is_found_among_digits_on_white_plain_colours_and_scenes(tmp_path: Path) -> None:
    result = check(clean(tmp_path / "set"))
    assert [(each.kind, each.groups[:5]) for each in result.findings] == []
    assert result.counts == {"colours": 200, "digits": 200, "harbour": 60, "meadow": 60}


def test_mirror_images_of_two_classes_are_a_note_and_no_error(tmp_path: Path) -> None:
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
        for number in range(12):
            arrow = scene(number)
            (arrow if label == "left" else ImageOps.mirror(arrow)).save(tmp_path / label / f"{number}.png")
    result = check(tmp_path)
    assert [each.kind for each in result.findings] == ["mirrored"] and not result.is_wrong
    assert result.findings[0].groups[0] == ("left/0.png", "right/0.png")


def test_class_folders_without_a_split_are_checked_as_they_are(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(12):
            scene(100 * (label == "b") + number).save(tmp_path / label / f"{number}.png")
    assert check(tmp_path).findings == ()
    shutil.copy(tmp_path / "a/0.png", tmp_path / "a/copy.png")
    assert [each.kind for each in check(tmp_path).findings] == ["exact duplicate"]


@pytest.mark.parametrize("make", ["nothing", "one class", "only in test", "no archive"])
def test_what_stops_the_listing_is_one_finding(
    tmp_path: Path, make: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    names = {"one class": ["a"], "only in test": ["train/a", "train/b", "test/a", "test/c"]}.get(make, [])
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        scene(number).save(root / name / "0.png")
    if make == "no archive":
        root = tmp_path / "set.zip"
        root.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(SystemExit) as end:
        main(["check", str(root), "--json", "--strict"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert end.value.code == 1 and [each["kind"] for each in found] == ["no training set"]
    assert found[0]["meaning"] and "\n" not in found[0]["meaning"] and found[0]["advice"]


def test_a_path_that_is_not_there_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder or file"):
        check(tmp_path / "gone")


def test_pictures_of_too_many_pixels_are_one_finding_whatever_their_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(12):
            scene(100 * (label == "b") + number).save(tmp_path / label / f"{number}.png")
    for side in (300, 301):
        scene(side).resize((side, side)).save(tmp_path / "a" / f"{side}.png")
    monkeypatch.setattr("firstlight.data.image_files.MOST_DECODED", 80_000)
    found = [each for each in check(tmp_path).findings if each.kind == "unreadable"]
    assert [each.groups for each in found] == [(("a/300.png",), ("a/301.png",))]
    assert found[0].meaning.startswith("too many megapixels: the limit is ")
