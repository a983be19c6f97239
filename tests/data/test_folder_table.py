"""A CSV of file and label: all of it is text, and each row that is wrong is named by its line."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from folders import folder, picture

from firstlight.data.folder import Folder, list_pictures
from firstlight.data.folder_files import Listing
from firstlight.data.folder_split import _draw
from firstlight.errors import InputError

ROWS = "a/0.png,cat\na/1.png,cat\na/2.png,dog\nb/0.png,dog\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path, {"a": 3, "b": 3})


def write(root: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def labels(listing: Listing) -> dict[str, str]:
    return {each.name: each.label for each in listing.pictures}


WANTED = {"a/0.png": "cat", "a/1.png": "cat", "a/2.png": "dog", "b/0.png": "dog"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", ["", "file,label\n", "Image Path,Class Name\n", "picture,breed of it\n"])
def test_any_usual_table_is_understood(delimiter: str, end: str, header: str, root: Path) -> None:
    text = (header + ROWS).replace(",", delimiter).replace("\n", end)
    assert labels(list_pictures(write(root, text))) == WANTED


@pytest.mark.parametrize("encoded", [codecs.BOM_UTF8 + ROWS.encode(), ROWS.encode("utf-16")])
def test_a_byte_order_mark_is_no_part_of_the_first_name(encoded: bytes, root: Path) -> None:
    assert labels(list_pictures(write(root, encoded))) == WANTED


def test_columns_may_stand_in_any_order_beside_others(root: Path) -> None:
    text = "id,label,width,filename\n1,cat,40,a/0.png\n2,dog,40,b/0.png\n"
    path = write(root, text)
    with pytest.raises(InputError, match="names no picture"):
        list_pictures(write(root, text.replace("filename", "unknown")))
    assert labels(list_pictures(write(root, text.replace("id,", "number,")))) == {
        "a/0.png": "cat",
        "b/0.png": "dog",
    }
    write(root, "cat,a/0.png\ndog,b/0.png\n")
    assert labels(list_pictures(path)) == {"a/0.png": "cat", "b/0.png": "dog"}


def test_labels_stay_text(root: Path) -> None:
    text = (
        'file,label\na/0.png,007\na/1.png,NA\na/2.png,1e3\nb/0.png,"red, ""dark"""\nb/1.png,7\nb/2.png,None\n'
    )
    assert [*labels(list_pictures(write(root, text))).values()] == [
        *("007", "NA", "1e3", 'red, "dark"', "7", "None")
    ]


def test_quotes_may_hold_delimiters_and_line_ends_and_lines_are_counted(root: Path) -> None:
    picture(root / "x, y.png")
    text = '"file","label"\n\n"x, y.png","two\nlines"\nmissing.png,cat\na/0.png,"cat"\n'
    listing = list_pictures(write(root, text))
    assert labels(listing) == {"x, y.png": "two\\nlines", "a/0.png": "cat"}
    assert [each.name for each in listing.skipped] == ["line 5, missing.png"]


def test_rows_that_name_no_picture_are_listed_with_their_line(root: Path) -> None:
    picture(root.parent / "outside.png")
    (root / "notes.txt").write_text("words")
    (root / "linked.png").symlink_to(root.parent / "outside.png")
    rows = [
        "missing.png,cat",
        ",cat",
        "b/1.png,",
        "notes.txt,cat",
        "../outside.png,cat",
        "linked.png,cat",
        "a,dog",
    ]
    rows += [
        "b/1.png",
        "b/1.png,cat,dog",
        f"{root.parent / 'outside.png'},cat",
        "a/0.png,cat",
        "nul\0.png,cat",
    ]
    listing = list_pictures(write(root, "file,label\n" + ROWS + "\n".join(rows)))
    assert labels(listing) == WANTED
    outside = "a row whose file is not in the folder of the table"
    assert {each.name: each.reason for each in listing.skipped} == {
        "line 6, missing.png": "a row whose file is not there",
        "line 7": "a row without a file",
        "line 8": "a row without a label",
        "line 9, notes.txt": "no picture file",
        "line 10, ../outside.png": outside,
        "line 11, linked.png": outside,
        "line 12, a": "no regular file",
        "line 13": "a row of 1 columns instead of 2",
        "line 14": "a row of 3 columns instead of 2",
        f"line 15, {root.parent / 'outside.png'}": outside,
        "line 17, nul\\x00.png": "a row whose file is not there",
    }
    notes = Folder(root / "labels.csv").load()[0].notes
    assert any("a row whose file is not there: 2 (line 6, missing.png, " in note for note in notes)


def test_files_are_found_by_absolute_paths_and_by_those_of_windows(root: Path) -> None:
    text = f"file,label\n{root / 'a' / '0.png'},cat\na\\1.png,cat\n./a//2.png,dog\nb/../b/0.png,dog\n"
    assert labels(list_pictures(write(root, text))) == WANTED


def test_a_file_with_two_labels_is_named_with_both_lines(root: Path) -> None:
    path = write(root, "file,label\n" + ROWS + "a/0.png,cat\n./a/0.png,dog\n")
    with pytest.raises(InputError) as caught:
        list_pictures(path)
    assert "a/0.png has two labels, cat (line 2) and dog (line 7)" in caught.value.message


def test_a_column_divides_the_set(root: Path) -> None:
    lines = [f"{each}/{number}.png,{each}" for each in "ab" for number in range(3)]
    parts = ["train", "Train", "test", "training", "val", "test"]
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    for header in ("file,label,split\n", ""):
        train, test = Folder(write(root, header + text)).load()
        assert list(test.names) == ["a/2.png", "b/2.png"] and len(train) == 4
        assert "the 1 validation images join the training images" in train.notes
    with pytest.raises(InputError, match="line 8: the split 'tset' is not known"):
        list_pictures(write(root, f"file,label,split\n{text}\na/0.png,a,tset"))
    with pytest.raises(InputError, match=r"two splits, train \(line 2\) and test \(line 8\)"):
        list_pictures(write(root, f"file,label,split\n{text}\na/0.png,a,test"))


def test_changed_labels_are_noticed_though_no_picture_changed(root: Path) -> None:
    path = write(root, "file,label\n" + ROWS)
    first = Folder(path).load()
    write(root, "file,label\n" + ROWS.replace("a/1.png,cat", "a/1.png,dog"))
    second = Folder(path).load()
    by_name = {
        name: int(label) for each in second for name, label in zip(each.names, each.labels, strict=True)
    }
    assert by_name["a/1.png"] == 1 and sum(by_name.values()) == 3
    assert len(first[0]) + len(first[1]) == 4


def test_changed_labels_change_the_split(root: Path) -> None:
    names = sorted((f"{each}/{n}.png" for each in "ab" for n in range(3)), key=lambda name: _draw(0, name))
    for labels, test in (("xxxyyy", {0, 3}), ("xyyxxy", {0, 1})):
        rows = "\n".join(f"{name},{label}" for name, label in zip(names, labels, strict=True))
        assert {*Folder(write(root, rows)).load()[1].names} == {names[index] for index in test}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no two columns"),
        (b"one\ntwo\n", "has no two columns"),
        (b"file,label\na/0.png,caf\xe9\n", "is not UTF-8 in line 2"),
        (b"file,label\nx.png,cat\n", "names no picture in its folder (line 2, x.png: "),
        (b"p,q,r,s\na/0.png,1,2,3\n", "the columns p, q, r, s are not clear"),
        (b"a/0.png,1,2\nb/0.png,3,4\n", "the columns a/0.png, 1, 2 are not clear"),
        (b"file,label\na/0.png,cat\na/1.png,cat\n", "only one class, cat"),
        (b'file,label\na/0.png,"' + b"x" * 140_000 + b'"\n', "cannot be read as a table: field larger"),
    ],
)
def test_a_table_that_is_not_clear_is_refused(text: bytes, message: str, root: Path) -> None:
    with pytest.raises(InputError) as caught:
        list_pictures(write(root, text))
    assert message in caught.value.message and "\n" not in caught.value.message


def test_a_folder_without_classes_may_hold_a_table(tmp_path: Path) -> None:
    root = folder(tmp_path, {"around/images": 4})
    text = "file,label\n" + "".join(f"images/{number}.png,{'ab'[number % 2]}\n" for number in range(4))
    write(root / "around", text)
    assert len(list_pictures(root).pictures) == 4
    write(root / "around", text, "other.csv")
    with pytest.raises(InputError, match="only one class, images"):
        list_pictures(root)
    folder(root, {"around/more": 4})
    assert {each.label for each in list_pictures(root).pictures} == {"images", "more"}
