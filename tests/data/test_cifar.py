from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.data import cifar10
from firstlight.data.cache import Arrays, KeptArrays, digest
from firstlight.data.cifar10 import CLASSES, MEAN, MIRRORS, STD, Cifar10, read_arrays
from firstlight.data.cifar10_files import CIFAR10, NAMES, Edition
from firstlight.data.download import PublishedFile
from firstlight.data.images import statistics
from firstlight.errors import InputError
from firstlight.machine.storage import cache_folder

BATCHES = ("data_batch_1", "data_batch_2", "test_batch")
COUNT = 4


def _python_2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch as the authors' Python 2 did."""
    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x06labels](" + numbers + b"eU\x04data" + array + b"u."


def _tar(path: Path, folder: str, files: dict[str, bytes]) -> PublishedFile:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _published(path)


def _published(path: Path) -> PublishedFile:
    content = path.read_bytes()
    return PublishedFile(path.name, len(content), hashlib.md5(content).hexdigest())


class Small:
    """A set of the published form with 8 training and 4 test images, in every form, in folders of its own."""

    def __init__(self, root: Path) -> None:
        generator = np.random.default_rng(1)
        images = generator.integers(0, 256, (3, COUNT, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, (3, COUNT))
        shaped = images.reshape(3 * COUNT, 3, 32, 32)
        flat = labels.reshape(-1).astype(np.int64)
        self.arrays: Arrays = {
            "train_images": shaped[:8],
            "train_labels": flat[:8],
            "test_images": shaped[8:],
            "test_labels": flat[8:],
        }
        python = {name: _python_2_batch(images[i], labels[i].tolist()) for i, name in enumerate(BATCHES)}
        binary = {
            f"{name}.bin": np.hstack([labels[i][:, None].astype(np.uint8), images[i]]).tobytes()
            for i, name in enumerate(BATCHES)
        }
        self.places: dict[str, Path] = {}
        for form, files in (("py", python), ("bin", binary)):
            folder = root / form / f"cifar-10-batches-{form}"
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            self.places[form], self.places[f"{form} itself"] = folder.parent, folder
        sums = []
        for form, name, files in (("py", "python", python), ("bin", "binary", binary)):
            folder = root / f"{form}-archive"
            folder.mkdir()
            path = folder / f"cifar-10-{name}.tar.gz"
            sums.append(_tar(path, f"cifar-10-batches-{form}", files))
            self.places[f"{form} archive"], self.places[f"{form} archive itself"] = folder, path
            renamed = folder / f"renamed {form}.tgz"
            renamed.write_bytes(path.read_bytes())
            self.places[f"{form} archive renamed"] = renamed
        self.edition = Edition(
            batches=tuple(_published(self.places["py itself"] / name) for name in BATCHES),
            python_archive=sums[0],
            binary_archive=sums[1],
            images_per_batch=COUNT,
            digest=digest(self.arrays),
        )

    def read(self, place: Path | str | None) -> Arrays:
        where = self.places[place] if isinstance(place, str) else place
        return read_arrays(where, edition=self.edition, mirrors=())

    def assert_same(self, arrays: Arrays) -> None:
        assert list(arrays) == list(NAMES)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, self.arrays[name])
            assert array.dtype == self.arrays[name].dtype


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    return Small(tmp_path)


FORMS = [
    "py", "py itself", "py archive", "py archive itself", "py archive renamed",
    "bin", "bin itself", "bin archive", "bin archive itself", "bin archive renamed",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays_decoded_and_mapped(small: Small, form: str) -> None:
    first, second = small.read(form), small.read(form)
    small.assert_same(first)
    small.assert_same(second)
    assert all(isinstance(array, np.memmap) for array in second.values())
    assert not list(cache_folder().rglob("*.part"))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_damaged_batch_is_named(small: Small, form: str, name: str, decoded: bool) -> None:
    if decoded:
        small.read(form)
    path = small.places[f"{form} itself"] / (name if form == "py" else f"{name}.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=rf"{name}.* cut short") as caught:
        small.read(form)
    assert caught.value.hint
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"{name}.* altered|{path.parent.name} holds other images"):
        small.read(form)
    path.unlink()
    if path.name != "data_batch_1.bin":
        with pytest.raises(InputError, match=rf"{name}.* is missing"):
            small.read(form)
    path.write_bytes(whole)
    small.assert_same(small.read(form))


@pytest.mark.parametrize("form", ["py archive itself", "bin archive itself"])
def test_a_damaged_archive_is_named(small: Small, form: str) -> None:
    path = small.places[form]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=f"{path.name} is cut short"):
        small.read(form)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{path.name} is altered"):
        small.read(form)


def test_a_label_out_of_range_in_the_binary_form_is_named(small: Small) -> None:
    path = small.places["bin itself"] / "data_batch_2.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(InputError, match=r"data_batch_2\.bin holds a label outside"):
        small.read("bin")


def test_an_archive_with_the_right_sum_but_without_a_batch_is_named(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    edition = replace(small.edition, binary_archive=_tar(path, "cifar-10-batches-bin", {"other": b"abc"}))
    with pytest.raises(InputError, match=r"binary\.tar\.gz holds no whole data_batch_1\.bin"):
        read_arrays(path, edition=edition)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def test_a_batch_that_wants_to_call_something_is_named_even_where_its_sum_is_trusted(small: Small) -> None:
    path = small.places["py itself"] / "data_batch_2"
    path.write_bytes(pickle.dumps({b"data": _Evil(), b"labels": []}))
    with pytest.raises(InputError, match="data_batch_2"):
        small.read("py")
    batches = tuple(_published(path.parent / name) for name in BATCHES)
    with pytest.raises(InputError, match=r"data_batch_2.*wants to import"):
        read_arrays(small.places["py"], edition=replace(small.edition, batches=batches))
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {b"data": np.zeros((4, 3072), "u1")},
        {b"data": 3, b"labels": [1]},
        {b"data": np.zeros((4, 9), "u1"), b"labels": [0] * 4},
        {b"data": np.zeros((4, 3072), "f4"), b"labels": [0] * 4},
        {b"data": np.zeros((4, 3072), "u1"), b"labels": [0, 1, 2, 10]},
    ],
)
def test_a_pickle_of_other_things_is_named(small: Small, value: object) -> None:
    path = small.places["py itself"] / "data_batch_2"
    path.write_bytes(pickle.dumps(value, 4))
    batches = tuple(_published(path.parent / name) for name in BATCHES)
    with pytest.raises(InputError, match=r"data_batch_2.*hold"):
        read_arrays(small.places["py"], edition=replace(small.edition, batches=batches))


def test_an_explicit_folder_without_the_data_is_an_error_even_where_the_cache_has_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.read("py")
    small.assert_same(small.read(None))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"empty holds no CIFAR-10.*cifar-10-batches-py"):
        small.read(empty)
    with pytest.raises(InputError, match="nowhere does not exist"):
        small.read(tmp_path / "nowhere")
    (empty / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is not an archive"):
        small.read(empty / "notes.txt")
    monkeypatch.setenv("FIRSTLIGHT_DATA", str(empty))
    with pytest.raises(InputError, match="from FIRSTLIGHT_DATA"):
        small.read(None)
    small.assert_same(small.read("bin"))


def test_the_environment_names_a_folder(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_DATA", str(small.places["py"]))
    small.assert_same(small.read(None))


def test_an_archive_put_into_the_cache_is_found(small: Small) -> None:
    cache_folder().mkdir()
    archive = small.places["bin archive itself"]
    (cache_folder() / archive.name).write_bytes(archive.read_bytes())
    small.assert_same(small.read(None))


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_data_the_error_names_three_ways_out(
    monkeypatch: pytest.MonkeyPatch, small: Small, offline: str
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_OFFLINE", offline)
    closed = [replace(mirror, url="http://127.0.0.1:9/x") for mirror in MIRRORS]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # before a second try
    with pytest.raises(InputError) as caught:
        read_arrays(edition=small.edition, mirrors=closed)
    assert "\n" not in caught.value.message
    assert ("OFFLINE" in caught.value.message) == (offline == "1")
    for way in (
        "--data-dir",
        "FIRSTLIGHT_DATA",
        "cifar-10-binary.tar.gz",
        str(cache_folder()),
        "shapes.demo",
    ):
        assert way in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "empty", "header", "objects"])
def test_a_damaged_cache_is_decoded_again(small: Small, name: str, damage: str) -> None:
    small.read("py")
    (path,) = cache_folder().rglob(f"{name}.npy")
    whole = path.read_bytes()
    path.unlink()
    if damage == "objects":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif damage != "missing":
        path.write_bytes(
            {
                "cut": whole[:-3],
                "altered": whole[:-1] + b"?",
                "empty": b"",
                "header": b"?" * 200 + whole[200:],
            }[damage]
        )
    small.assert_same(small.read("py"))
    small.assert_same(small.read(None))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"digest": 3}', '{"arrays": [1], "sources": 5}', "\x00"])
def test_a_damaged_record_only_costs_time(small: Small, text: str) -> None:
    small.read("py")
    (record,) = cache_folder().rglob("record.json")
    for content in (text, json.dumps({"digest": small.edition.digest, "arrays": text, "sources": [text]})):
        record.write_text(content)
        small.assert_same(small.read("py"))


def test_a_cache_that_cannot_be_written_is_done_without(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small.places["py"] / "file").write_text("in the way")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(small.places["py"] / "file" / "cache"))
    arrays = small.read("py")
    small.assert_same(arrays)
    assert not any(isinstance(array, np.memmap) for array in arrays.values())


def test_decoding_at_the_same_time_leaves_whole_files(small: Small) -> None:
    found: list[Arrays] = []
    threads = [threading.Thread(target=lambda: found.append(small.read("py archive"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for arrays in found:
        small.assert_same(arrays)
    kept = KeptArrays(next(cache_folder().glob("cifar10-*")), NAMES, small.edition.digest)
    loaded = kept.load()
    assert loaded is not None
    small.assert_same(loaded)
    assert not list(cache_folder().rglob("*.part"))


def test_changing_a_mapped_image_never_changes_the_cache(small: Small) -> None:
    small.read("py")
    small.read("py")["train_images"][:] = 0
    small.assert_same(small.read("py"))


def test_load_gives_image_sets_without_a_warning(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "read_arrays", lambda data_dir: small.read(data_dir))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            train, test = Cifar10().load(small.places["py"])
    assert (len(train), len(test)) == (8, 4)
    assert (train.mean, train.std) == (test.mean, test.std) == (MEAN, STD)
    assert train.facts == test.facts == Cifar10().facts()
    assert train.classes == CLASSES
    assert (train.names[0], test.names[3]) == ("train/00000", "test/00003")
    np.testing.assert_array_equal(train.images.numpy(), small.arrays["train_images"])


def test_the_mirrors_have_the_published_archives_and_the_slow_one_is_last() -> None:
    assert len(MIRRORS) >= 3 and "toronto" in MIRRORS[-1].url
    for mirror in MIRRORS:
        assert mirror.url.startswith("https://") and mirror.file.name in mirror.url
        assert mirror.file in (CIFAR10.python_archive, CIFAR10.binary_archive)


def test_the_real_set(cifar_folder: Path) -> None:
    train, test = Cifar10().load(cifar_folder)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    assert (train.mean, train.std) == (MEAN, STD)
    mean, std = statistics(train.images)
    assert mean == pytest.approx(MEAN, abs=1e-12) and std == pytest.approx(STD, abs=1e-12)
    meta = (cifar_folder / "cifar-10-batches-py" / "batches.meta").read_bytes()
    places = [meta.index(name.encode()) for name in CLASSES]
    assert places == sorted(places)


def test_the_real_set_from_the_binary_form_is_the_same(
    cifar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = Cifar10().load(cifar_folder)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number, file in enumerate(CIFAR10.files("binary")):
        images, labels = (train.images, train.labels) if number < 5 else (test.images, test.labels)
        part = slice(number % 5 * 10_000, number % 5 * 10_000 + 10_000)
        rows = torch.cat([labels[part, None].to(torch.uint8), images[part].flatten(1)], dim=1)
        (folder / file.name).write_bytes(rows.numpy().tobytes())
        assert (folder / file.name).stat().st_size == file.size
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no cache here")
    again = Cifar10().load(tmp_path)
    assert torch.equal(again[0].images, train.images) and torch.equal(again[1].labels, test.labels)
    for path in folder.iterdir():
        path.unlink()
