"""A folder of a person's own pictures: classes by name, a split that can be repeated, pixels never stale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from folders import folder, picture
from PIL import Image

from firstlight.data import folder_files, folder_picture, image_files
from firstlight.data.folder import Folder
from firstlight.data.folder_files import Picture, list_folder
from firstlight.data.folder_split import held_out
from firstlight.data.image_files import open_upright, read_image
from firstlight.data.images import ImageSet, statistics
from firstlight.data.names import natural_key
from firstlight.errors import InputError, printable
from firstlight.machine.storage import cache_folder

SMALL = {"cat": 10, "dog": 5}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(path))
    return path


def load(root: Path, **fields: int | str | float) -> tuple[ImageSet, ImageSet]:
    return Folder(root, **fields).load()  # type: ignore[arg-type]


def by_name(images: ImageSet) -> dict[str, str]:
    """Return the class of each image."""
    return {
        name: images.classes[label] for name, label in zip(images.names, images.labels.tolist(), strict=True)
    }


def reasons(root: Path) -> dict[str, str]:
    return {each.name: each.reason for each in list_folder(root).skipped}


def error(root: Path, **fields: int | str | float) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **fields)
    assert "\n" not in caught.value.message
    return str(caught.value)


# Classes and what is left out


def test_classes_are_sub_folders_in_natural_order(tmp_path: Path) -> None:
    train, test = load(folder(tmp_path, {"class10": 3, "class2": 3, "Class1": 3}))
    assert train.classes == test.classes == ("Class1", "class2", "class10")
    for images in (train, test):
        assert all(name.split("/")[0] == label for name, label in by_name(images).items())


def test_natural_order_counts_and_ignores_case() -> None:
    names = ["b", "a10", "A9", "a010", "a", "10", "9", "é", "x" + "9" * 5000, "x1"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "A9", "a010", "a10", "b", "x1", names[8], "é"]


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    folder(tmp_path, {"cat/young": 2, "cat/old/very": 2, "cat": 1, "dog": 2})
    train, test = load(tmp_path)
    labels = by_name(train) | by_name(test)
    assert train.classes == ("cat", "dog") and len(labels) == 7
    assert labels["cat/old/very/1.png"] == labels["cat/young/0.png"] == labels["cat/0.png"] == "cat"


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("train", "val")])
def test_train_and_test_folders_are_kept_as_they_are(names: tuple[str, str], tmp_path: Path) -> None:
    train_folder, test_folder = names
    counts = {f"{train_folder}/cat": 3, f"{train_folder}/dog": 2, f"{test_folder}/dog": 4}
    train, test = load(folder(tmp_path, {**counts, f"{test_folder}/cat": 1}))
    assert (len(train), len(test)) == (5, 5) and train.classes == ("cat", "dog")
    assert all(name.startswith(train_folder) for name in train.names)
    assert by_name(test)[f"{test_folder}/cat/0.png"] == "cat"
    assert not any("held out" in note for note in train.notes)


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_validation_images_join_the_training_images_where_there_is_a_test(name: str, tmp_path: Path) -> None:
    counts = {"train/a": 3, "train/b": 3, f"{name}/a": 2, "test/a": 1, "test/b": 1}
    train, test = load(folder(tmp_path, counts))
    assert (len(train), len(test)) == (8, 2)
    assert "the 2 validation images join the training images" in train.notes


def test_labels_go_by_name_also_where_a_class_is_missing_in_test(tmp_path: Path) -> None:
    train, test = load(folder(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 2, "test/c": 2}))
    assert test.labels.tolist() == [2, 2] and test.classes == ("a", "b", "c")
    assert "no test image of a, b" in train.notes


def test_a_class_that_is_only_in_test_is_named(tmp_path: Path) -> None:
    folder(tmp_path, {"train/cat": 2, "train/dog": 2, "test/Cat": 2, "test/dog": 2})
    assert "class Cat in test but not in train" in error(tmp_path)
    assert "Did you mean 'cat'?" in error(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    train, _ = load(folder(tmp_path, {"train": 3, "bus": 3, "car/red": 3}))
    assert train.classes == ("bus", "car", "train")


@pytest.mark.parametrize("around", ["photos", "photos/2026", "train", "photos/train"])
def test_folders_around_all_classes_are_passed_through(around: str, tmp_path: Path) -> None:
    folder(tmp_path, {f"{around}/cat": 4, f"{around}/dog": 4})
    (tmp_path / "README.txt").write_text("mine")
    train, test = load(tmp_path)
    assert train.classes == ("cat", "dog") and len(test) == 2
    assert f"{around}/cat/0.png" in {*train.names, *test.names}


def test_a_test_folder_without_classes_is_left_out_and_the_set_is_split(tmp_path: Path) -> None:
    train, test = load(folder(tmp_path, {"train/a": 5, "train/b": 5, "test": 3}))
    assert (len(train), len(test)) == (8, 2) and not any("test/" in name for name in test.names)
    assert reasons(tmp_path)["test/0.png"] == "lies in no class folder"


def test_what_is_no_picture_is_listed_with_its_reason_and_makes_no_class(tmp_path: Path) -> None:
    folder(tmp_path, SMALL)
    folder(tmp_path, {"__MACOSX": 2, ".ipynb_checkpoints": 2, "cat/.hidden": 1})
    for name in (
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/._1.png",
        "cat/1.txt",
        "notes/list.xml",
        "cat/1.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"words, not pixels")
    (tmp_path / "cat" / "nothing.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "stray.png")
    (tmp_path / "dog" / "1.png").rename(tmp_path / "dog" / "no_suffix")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    train, test = load(tmp_path)
    assert train.classes == ("cat", "dog") and len(train) + len(test) == 15
    assert "dog/no_suffix" in {*train.names, *test.names}
    hidden = "hidden, or made by the system"
    assert reasons(tmp_path) == {
        **dict.fromkeys(("__MACOSX", ".ipynb_checkpoints", "cat/.hidden", "cat/.DS_Store"), hidden),
        **dict.fromkeys(("cat/Thumbs.db", "dog/._1.png"), hidden),
        **dict.fromkeys(("cat/1.txt", "notes/list.xml", "cat/1.json"), "no picture file"),
        "cat/nothing.png": "an empty file",
        "dog/pipe.png": "no regular file",
        "stray.png": "lies in no class folder",
        **dict.fromkeys(("notes", "empty"), "a folder without pictures"),
    }
    assert "left out, no picture file: 3 (cat/1.json, cat/1.txt, notes/list.xml)" in train.notes


def test_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", {"cat": 4, "dog/young": 3, "dog": 1})
    outside = picture(tmp_path / "outside" / "secret.png")
    links = {
        "cat/inside.png": root / "dog" / "0.png",
        "cat/outside.png": outside,
        "dog/outside": outside.parent,
        "dog/broken.png": root / "nowhere.png",
        "dog/young/round": root / "dog",
        "puppy": root / "dog" / "young",
        "puppy2": root / "dog" / "young",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "dog" / "itself.png").symlink_to(root / "dog" / "itself.png")
    listing = list_folder(root)
    names = {each.name for each in listing.pictures}
    assert {"cat/inside.png", "puppy/0.png"} <= names and len(names) == 4 + 1 + 4 + 3
    assert {each.name: each.reason for each in listing.skipped} == {
        "cat/outside.png": "a link out of the folder",
        "dog/outside": "a link out of the folder",
        "dog/broken.png": "a broken link",
        "dog/itself.png": "a broken link",
        "dog/young/round": "a link to a folder that is read already",
        "puppy/round": "a link in a folder that is itself a link",
        "puppy2": "a link to a folder that is read already",
    }
    (tmp_path / "link").symlink_to(root)
    assert len(list_folder(tmp_path / "link").pictures) == len(names)


def test_names_that_would_break_a_line_are_escaped(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 2, "d\nog": 2, os.fsdecode(b"caf\xe9"): 2})
    picture(tmp_path / "cat" / "\x1b[31m.png")
    train, test = load(tmp_path)
    names = {*train.names, *test.names}
    assert train.classes == ("caf\\xe9", "cat", "d\\nog") and "cat/\\x1b[31m.png" in names
    "\n".join([*names, *train.notes, *train.classes]).encode()
    (tmp_path / "test" / "x\ny").mkdir(parents=True)
    assert (
        printable("a\u202eb\x7f\u2028") == "a\\u202eb\\x7f\\u2028" and printable("Löwe 👩‍💻") == "Löwe 👩‍💻"
    )
    assert "no\\nwhere" in error(tmp_path / "no\nwhere")


def test_the_two_ways_to_write_an_accent_are_one_class(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "Löwe") for form in ("NFC", "NFD"))
    train, test = load(folder(tmp_path, {f"train/{one}": 2, "train/b": 2, f"test/{two}": 1}))
    assert train.classes == ("b", one) and test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no pictures in class folders"),
        ({".": 3}, "holds no pictures in class folders (3 lies in no class folder)"),
        ({"cat": 3}, "only one class, cat"),
        ({"train/cat": 3, "test/cat": 3}, "only one class, cat"),
        ({"test/cat": 3, "test/dog": 3, "val/dog": 3}, "has test, val but no train folder"),
    ],
)
def test_a_folder_without_classes_is_refused(counts: Mapping[str, int], message: str, tmp_path: Path) -> None:
    assert message in error(folder(tmp_path, counts))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no folder or file" in error(tmp_path / "nowhere")
    assert "is no folder, no table and no archive" in error(picture(tmp_path / "a.png"))
    with pytest.raises(InputError, match="no folder of pictures was given"):
        Folder().load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side": 31}, "side must be 32 to 224"),
        ({"largest": 225}, "largest must be 32 to 224"),
        ({"fit": "shrink"}, "fit cannot be 'shrink'"),
        ({"test_share": 0.0}, "test_share must be above 0"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields: Mapping[str, int | str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Folder("pictures", **fields)  # type: ignore[arg-type]


# The split


def test_the_split_is_stratified_and_every_class_of_two_has_a_test_image(tmp_path: Path) -> None:
    counts = {"many": 50, "some": 10, "two": 2, "one": 1}
    train, test = load(folder(tmp_path, counts))
    assert Counter(by_name(test).values()) == {"many": 10, "some": 2, "two": 1}
    assert Counter(by_name(train).values()) == {"many": 40, "some": 8, "two": 1, "one": 1}
    assert not {*train.names} & {*test.names}
    assert "no test image of one" in train.notes
    assert any("13 of 63 pictures are held out for the test" in note for note in train.notes)


def test_the_split_is_shuffled_by_the_seed_and_by_nothing_else(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"x": 30, "y": 30})
    first = [images.names for images in load(root)]
    assert [images.names for images in load(shutil.copytree(root, tmp_path / "b"))] == first
    assert [images.names for images in load(root, seed=1)] != first
    taken = {int(Path(name).stem) for name in first[1] if name.startswith("x")}
    assert taken != set(range(6)) and taken != set(range(24, 30))


def test_the_split_does_not_depend_on_the_order_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, {"x": 9, "y": 9})
    before = list_folder(root)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(folder_files.os, "scandir", Backwards)
    assert list_folder(root) == before


def test_another_picture_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x": 40, "y": 40})
    before = {*load(root)[1].names}
    picture(root / "x" / "new.png")
    after = {*load(root)[1].names}
    assert len(before - after) <= 1 and len(after - before) <= 1


def test_the_same_file_stays_on_one_side(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x": 10, "y": 10})
    for number in range(10):
        for copy in ("x/copy", "x/again", "y/other"):
            shutil.copy(root / "x" / f"{number}.png", root / f"{copy}{number}.png")
    for seed in range(5):
        train, test = load(root, seed=seed)
        sides = {name: side for side, images in enumerate((train, test)) for name in images.names}
        for number in range(10):
            copies = (
                f"x/{number}.png",
                f"x/copy{number}.png",
                f"x/again{number}.png",
                f"y/other{number}.png",
            )
            assert len({sides[name] for name in copies}) == 1
        assert {*by_name(test).values()} == {"x", "y"}
        assert any("the same file in several classes: x/0.png = x/again0.png" in note for note in train.notes)


def test_a_class_of_a_few_pictures_many_times_has_a_test_image(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x": 2, "y": 4})
    for number in range(6):
        shutil.copy(root / "x" / f"{number // 5}.png", root / "x" / f"copy{number}.png")
    train, test = load(root, test_share=0.1)
    assert Counter(by_name(test).values())["x"] == 2, "the smaller group of the two"
    assert Counter(by_name(train).values())["x"] == 6


def test_a_class_of_one_picture_many_times_has_no_test_image(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x": 1, "y": 4})
    for number in range(5):
        shutil.copy(root / "x" / "0.png", root / "x" / f"copy{number}.png")
    train, test = load(root)
    assert {*by_name(test).values()} == {"y"} and Counter(by_name(train).values())["x"] == 6


def test_a_class_never_loses_its_last_training_image() -> None:
    def pictures(**counts: int) -> list[Picture]:
        return [
            Picture(f"{label}/{number}", Path(), label, "", ())
            for label, count in counts.items()
            for number in range(count)
        ]

    for share in (0.01, 0.5, 0.99):
        for seed in range(20):
            some = pictures(a=2, b=3, c=20)
            digests = {each.name: each.name for each in some}
            digests["b/0"], digests["b/1"] = "a/0", "a/1"  # both of a are in b, too
            test = held_out(some, digests, share, seed)
            counts = Counter(name[0] for name in test)
            assert 1 <= counts["a"] < 2 and 1 <= counts["b"] < 3 and 1 <= counts["c"] < 20


def test_pictures_that_are_in_train_and_test_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2})
    shutil.copy(root / "train/a/0.png", root / "test/a/same.png")
    train, _ = load(root)
    leak = "test images that are also training images: 1 (test/a/same.png = train/a/0.png)"
    assert leak in train.notes


# Pixels


def test_pixels_are_those_of_the_one_reader(tmp_path: Path) -> None:
    train, test = load(folder(tmp_path, SMALL, suffix=".jpg"), side=48)
    for images in (train, test):
        for name, pixels in zip(images.names, images.images, strict=True):
            assert torch.equal(pixels, read_image(tmp_path / name, (3, 48, 48)))
    assert (train.mean, train.std) == statistics(train.images) == (test.mean, test.std)


def test_statistics_of_some_rows_are_those_of_the_rows() -> None:
    images = torch.arange(6 * 3 * 4 * 4).view(6, 3, 4, 4).remainder(251).byte()
    rows = torch.tensor([5, 1, 2])
    assert statistics(images, rows) == statistics(images[rows])


@pytest.mark.parametrize(
    ("size", "side"),
    [((20, 30), 32), ((63, 90), 32), ((64, 900), 64), ((130, 150), 128), ((500, 300), 224)],
)
def test_the_side_is_chosen_from_the_pictures(size: tuple[int, int], side: int, tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "a" / f"{number}.png", size=size)
        picture(tmp_path / "b" / f"{number}.png", size=size)
    picture(tmp_path / "b" / "large.png", size=(400, 400))
    train, _ = load(tmp_path)
    assert train.shape == (3, side, side)
    assert any(f"read as {side}×{side}" in note and str(min(size)) in note for note in train.notes)
    assert load(tmp_path, largest=32)[0].shape == (3, 32, 32)
    assert load(tmp_path, side=40)[0].shape == (3, 40, 40)


def test_unreadable_files_are_left_out_and_named_with_the_reason(tmp_path: Path) -> None:
    root = folder(tmp_path, {**SMALL, "train": 4})
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "text.jpg").write_text("no pixels at all")
    train, test = load(root)
    names = {*train.names, *test.names}
    assert len(names) == 19 and not {"cat/cut.png", "dog/text.jpg"} & names
    (note,) = (note for note in train.notes if note.startswith("left out, unreadable"))
    assert (
        note.startswith("left out, unreadable: 2 (cat/cut.png: ")
        and "dog/text.jpg: no image file of a known kind" in note
    )
    assert str(root) not in note
    labels = by_name(train) | by_name(test)
    for images in load(root):
        for name, pixels in zip(images.names, images.images, strict=True):
            assert torch.equal(pixels, read_image(root / name, (3, 32, 32))) and labels[name] == name[:-6]


def test_a_class_without_a_readable_picture_is_an_error(tmp_path: Path) -> None:
    folder(tmp_path, SMALL)
    for number in range(5):
        (tmp_path / "dog" / f"{number}.png").write_bytes(b"broken")
    assert "no training image of class dog can be read (dog/0.png: no image file of a known kind" in error(
        tmp_path
    )


def test_a_set_without_any_test_image_is_an_error(tmp_path: Path) -> None:
    assert "gives no test image" in error(folder(tmp_path, {"a": 1, "b": 1}))


def test_a_decoder_that_fails_in_its_own_way_costs_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, side: int) -> Image.Image:
        if path.name == "3.png":
            raise KeyError("chunk\n9")
        return open_upright(path, side)

    monkeypatch.setattr(folder_picture, "open_upright", read)
    train, test = load(folder(tmp_path, {"a": 5, "b": 5}))
    assert len(train) + len(test) == 8
    assert any("a/3.png: KeyError: 'chunk\\n9'" in note for note in train.notes)


def test_a_picture_too_large_for_the_memory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, {"a": 5, "b": 5})
    picture(root / "a" / "huge.png", size=(400, 400))
    monkeypatch.setattr(image_files, "MOST_DECODED", 100_000)
    train, test = load(root)
    assert len(train) + len(test) == 10 and any("a/huge.png" in note for note in train.notes)


# The cache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files that are decoded from here on."""
    names: list[str] = []

    def read(path: Path, side: int) -> Image.Image:
        names.append(path.name)
        return open_upright(path, side)

    monkeypatch.setattr(folder_picture, "open_upright", read)
    return names


def same(first: tuple[ImageSet, ImageSet], second: tuple[ImageSet, ImageSet]) -> bool:
    return all(
        (a.digest, list(a.names), a.notes, a.mean, a.std) == (b.digest, list(b.names), b.notes, b.mean, b.std)
        for a, b in zip(first, second, strict=True)
    )


def test_pictures_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    root = folder(tmp_path, SMALL)
    (root / "cat" / "broken.png").write_bytes(b"broken")
    first = load(root)
    assert len(reads) == 16
    second = load(root)
    assert len(reads) == 16 and same(first, second)
    load(root, side=64)
    assert len(reads) == 32
    load(root)
    assert len(reads) == 32, "another side must not push the first out"


def test_pixels_are_mapped_and_a_changed_map_is_read_again(tmp_path: Path) -> None:
    root = folder(tmp_path, SMALL)
    _, test = load(root)
    digest, last = test.digest, int(test.images.flatten()[-1])
    (file,) = cache_folder().glob("folder-*/*/images.npy")
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last ^ 1]))
    assert int(test.images.flatten()[-1]) == last ^ 1, "copied, not mapped"
    assert load(root)[1].digest == digest


@pytest.mark.parametrize("change", ["written", "moved", "deleted", "added", "swapped", "renamed"])
def test_a_change_is_noticed_and_labels_fit_their_pixels(change: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        picture(root / f"{name}.bmp")  # all of one size
        os.utime(root / f"{name}.bmp", ns=(10**18, 10**18))
    before = load(root)
    match change:
        case "written":
            picture(root / "a" / "0.bmp", seed=99)
        case "moved":
            (root / "a" / "0.bmp").rename(root / "b" / "3.bmp")
        case "deleted":
            (root / "a" / "0.bmp").unlink()
        case "added":
            picture(root / "b" / "3.bmp")
        case "swapped":
            (root / "a" / "0.bmp").rename(tmp_path / "x")
            (root / "b" / "0.bmp").rename(root / "a" / "0.bmp")
            (tmp_path / "x").rename(root / "b" / "0.bmp")
        case "renamed":
            (root / "b").rename(root / "c")
    for path in root.rglob("*.bmp"):
        os.utime(path, ns=(10**18, 10**18))
    after = load(root)
    assert not same(before, after)
    seen = 0
    for images in after:
        for name, pixels in zip(images.names, images.images, strict=True):
            assert torch.equal(pixels, read_image(root / name, (3, 32, 32)))
            assert by_name(images)[name] == name[0]
            seen += 1
    assert seen == sum(1 for _ in root.rglob("*.bmp"))


def test_a_new_reading_rule_reads_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, {"a": 2, "b": 2})
    load(root)
    monkeypatch.setattr("firstlight.data.folder.reading_rule", lambda: "another")
    load(root)
    assert len(reads) == 8


@pytest.mark.parametrize("file", ["images.npy", "facts.json"])
def test_a_damaged_cache_is_made_anew(file: str, tmp_path: Path, reads: list[str]) -> None:
    root = folder(tmp_path, {"a": 3, "b": 3})
    first = load(root)
    (path,) = cache_folder().glob(f"folder-*/*/{file}")
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.unlink()
    path.write_bytes(damaged)
    if file == "facts.json":
        path.write_text("[]")
    assert same(load(root), first) and len(reads) == 12


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", SMALL)
    (root / "cat" / "broken.png").write_bytes(b"broken")
    first = load(root)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(blocked / "cache"))
    assert same(load(root), first) and same(load(root), first) and len(reads) == 48


def test_a_full_disk_only_costs_time(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 9, "b": 9})
    first = load(root)
    code = (
        "import resource, signal, sys\nfrom firstlight.data.folder import Folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "print(*[images.digest for images in Folder(sys.argv[1]).load()])\n"
    )
    environment = {**os.environ, "FIRSTLIGHT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == [images.digest for images in first], done.stderr
    assert not list((tmp_path / "cache").rglob("*.npy")) and not list((tmp_path / "cache").rglob("*.part"))


def test_a_passing_error_of_the_disk_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, {"a": 5, "b": 5})

    def fail(path: Path, side: int) -> Image.Image:
        if path.name == "3.png":
            raise OSError(5, "Input/output error")
        return open_upright(path, side)

    with monkeypatch.context() as patch:
        patch.setattr(folder_picture, "open_upright", fail)
        assert sum(map(len, load(root))) == 8
    assert sum(map(len, load(root))) == 10


def test_the_cache_of_a_folder_keeps_four_entries(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 2, "b": 2})
    for side in range(32, 39):
        load(root, side=side)
    assert len(list(cache_folder().glob("folder-*/*/images.npy"))) == 4
