"""Archives of pictures give what their folder gives, and unpack nothing outside."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from folders import folder, picture

from firstlight.data import archives
from firstlight.data.folder import Folder
from firstlight.errors import InputError
from firstlight.machine.storage import cache_folder

CASES = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.bz2": "bztar", "tar.xz": "xztar"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(path))
    return path


def write_zip(path: Path, members: Mapping[str, bytes], modes: Mapping[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def write_tar(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def pictures(root: Path) -> dict[str, bytes]:
    files = folder(root, {"cat": 4, "dog": 4}).rglob("*.png")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def names(path: Path) -> list[str]:
    return [each.name for each in Folder(path).listing().pictures]


@pytest.mark.parametrize("suffix", CASES)
def test_an_archive_gives_what_its_folder_gives(suffix: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": 4, "dog": 4})
    archive = shutil.make_archive(str(tmp_path / "pets"), CASES[suffix], root)
    direct, packed = Folder(root).load(), Folder(archive).load()
    for one, two in zip(direct, packed, strict=True):
        assert one.digest == two.digest and list(one.names) == list(two.names)
    assert packed[0].notes[0].startswith(f"{archive}: 2 classes") and "unpacked-" not in str(packed[0].notes)


def test_a_table_in_an_archive_is_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"images": 4})
    (root / "labels.csv").write_text("file,label\n" + "".join(f"images/{n}.png,{n % 2}\n" for n in range(4)))
    train, test = Folder(shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "pets")).load()
    assert train.classes == ("0", "1") and len(train) + len(test) == 4


def test_an_archive_is_unpacked_once_and_again_where_it_changed(tmp_path: Path) -> None:
    members = pictures(tmp_path / "pets")
    path = write_zip(tmp_path / "pets.zip", members)
    assert len(names(path)) == 8
    (unpacked,) = cache_folder().glob("unpacked-*/*/files")
    inode = unpacked.stat().st_ino
    assert len(names(path)) == 8 and unpacked.stat().st_ino == inode
    next(unpacked.rglob("*.png")).unlink()
    assert len(names(path)) == 8, "a file that a cleaner took is there again"
    write_zip(path, {**members, "cat/new.png": members["cat/0.png"]})
    assert "cat/new.png" in names(path)
    assert len(list(cache_folder().glob("unpacked-*/*"))) == 1


def test_without_a_cache_an_archive_is_unpacked_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "pets.zip", pictures(tmp_path / "pets"))
    digests = [images.digest for images in Folder(path).load()]
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(archives.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert [images.digest for images in Folder(path).load()] == digests
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    "name", ["../out.png", "cat/../../out.png", "/out.png", "C:\\out.png", "..\\out.png"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_path_that_leads_out_is_refused_and_nothing_stays(
    name: str, write: type[object], tmp_path: Path
) -> None:
    members = {**pictures(tmp_path / "pets"), name: b"evil"}
    path = write(tmp_path / ("a.zip" if write is write_zip else "a.tar.gz"), members)  # type: ignore[call-arg]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="holds a path that leads out of it") as caught:
        Folder(str(path)).load()
    assert "\n" not in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before and not list(cache_folder().rglob("*.png"))


def test_links_in_an_archive_are_left_out_with_their_reason(tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret" / "0.png")
    members = pictures(tmp_path / "pets")
    tar = write_tar(
        tmp_path / "a.tar.gz", members, {"cat/link.png": str(secret), "dog/more": str(secret.parent)}
    )
    link = {"cat/link.png": str(secret).encode()}
    zipped = write_zip(tmp_path / "a.zip", {**members, **link}, {"cat/link.png": stat.S_IFLNK | 0o777})
    for path, count in ((tar, 2), (zipped, 1)):
        train, test = Folder(path).load()
        assert len(train) + len(test) == 8
        assert any(
            note.startswith(f"left out, a link in an archive: {count} (cat/link.png") for note in train.notes
        )
        assert not any(each.is_symlink() for each in cache_folder().rglob("*"))
        assert [each.reason for each in Folder(path).listing().skipped] == ["a link in an archive"] * count


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_what_unpacks_to_too_much_is_refused(
    write: type[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("a.zip" if write is write_zip else "a.tar.gz")
    write(path, {**pictures(tmp_path / "pets"), "cat/bomb.bmp": bytes(50_000_000)})  # type: ignore[call-arg]
    assert len(names(path)) == 9
    shutil.rmtree(cache_folder())
    monkeypatch.setattr(archives, "FREE_BYTES", 10_000_000)
    with pytest.raises(InputError, match=r"unpacks to more than its size allows, at cat/bomb\.bmp"):
        names(path)
    monkeypatch.setattr(archives, "FREE_BYTES", 100_000_000)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 8)
    with pytest.raises(InputError, match="holds more than 8 members"):
        names(path)
    assert not list(cache_folder().rglob("*.bmp"))


def test_the_size_that_an_archive_claims_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/0.bmp": bytes(3_000_000), "dog/0.bmp": b"x"})
    data = path.read_bytes()
    path.write_bytes(data.replace((3_000_000).to_bytes(4, "little"), (9).to_bytes(4, "little")))
    monkeypatch.setattr(archives, "FREE_BYTES", 0)
    monkeypatch.setattr(archives, "MOST_RATIO", 1)
    with pytest.raises(InputError):
        names(path)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar"])
@pytest.mark.parametrize("kept", [0, 0.5, "garbage"])
def test_a_damaged_archive_is_named(suffix: str, kept: float | str, tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": 4, "dog": 4})
    path = Path(shutil.make_archive(str(tmp_path / "pets"), CASES[suffix], root))
    data = path.read_bytes()
    path.write_bytes(b"garbage" * 1000 if isinstance(kept, str) else data[: int(len(data) * kept)])
    with pytest.raises(InputError) as caught:
        names(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert not list(cache_folder().rglob("*.png"))


@pytest.mark.parametrize("suffix", ["tar.gz", "tar"])
def test_a_tar_that_is_cut_anywhere_is_damaged(suffix: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    path = Path(shutil.make_archive(str(tmp_path / "pets"), CASES[suffix], root))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) if suffix == "tar" else len(data)
    for length in range(512, end - 512, 512):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="cannot be unpacked"):
            names(path)


def test_an_archive_without_classes_is_named_itself(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"cat/0.png": pictures(tmp_path / "pets")["cat/0.png"]})
    with pytest.raises(InputError) as caught:
        names(path)
    assert f"{path} has only one class, cat" in caught.value.message


def test_a_member_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    members = pictures(tmp_path / "pets")
    path = write_tar(tmp_path / "a.tar.gz", {**members, "./cat/0.png": b"another"})
    listing = Folder(path).listing()
    assert len(listing.pictures) == 8 and listing.skipped[0].reason == "twice in the archive"
    assert os.path.getsize(listing.pictures[0].path) == len(members["cat/0.png"])
