"""CIFAR-10 is the same from every form, damage is named or repaired, and the cache only saves time."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.data import cifar10
from firstlight.data.cache import Arrays, digest
from firstlight.data.cifar10 import CLASSES, MEAN, MIRRORS, STD, Cifar10, is_here, read_arrays
from firstlight.data.cifar10_files import BINARY, CIFAR10, NAMES, PYTHON, Edition, Form
from firstlight.data.download import PublishedFile
from firstlight.data.images import statistics
from firstlight.errors import InputError
from firstlight.machine.storage import cache_folder

BATCHES = ("data_batch_1", "data_batch_2", "test_batch")
COUNT = 4


def python_2_batch(images: np.ndarray, labels: list[int]) -> bytes:
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


def tar(path: Path, folder: str, files: dict[str, bytes]) -> PublishedFile:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return published(path)


def published(path: Path) -> PublishedFile:
    content = path.read_bytes()
    return PublishedFile(path.name, len(content), hashlib.md5(content).hexdigest())


def altered(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 1])


class Small:
    """A set of the published form with 8 training and 4 test images, in every form, in folders of its own."""

    def __init__(self, root: Path) -> None:
        generator = np.random.default_rng(1)
        images = generator.integers(0, 256, (3, COUNT, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, (3, COUNT))
        shaped, flat = images.reshape(-1, 3, 32, 32), labels.reshape(-1).astype(np.int64)
        parts = (shaped[:8], flat[:8], shaped[8:], flat[8:])
        self.arrays: Arrays = dict(zip(NAMES, parts, strict=True))
        rows = np.dstack([labels[:, :, None].astype(np.uint8), images])
        python = [python_2_batch(*batch) for batch in zip(images, labels.tolist(), strict=True)]
        binary = [row.tobytes() for row in rows]
        self.paths: dict[str, Path] = {}
        forms = []
        for short, form, contents in (("py", PYTHON, python), ("bin", BINARY, binary)):
            names = BATCHES if form is PYTHON else [f"{name}.bin" for name in BATCHES]
            folder, path = root / short / form.folder, root / f"{short}-archive" / form.archive.name
            folder.mkdir(parents=True)
            for name, content in zip(names, contents, strict=True):
                (folder / name).write_bytes(content)
            archive = tar(path, form.folder, dict(zip(names, contents, strict=True)))
            renamed = shutil.copy(path, path.with_name(f"renamed {short}.tgz"))
            self.paths |= {short: folder.parent, f"{short} itself": folder, f"{short} archive": path.parent}
            self.paths |= {f"{short} archive itself": path, f"{short} archive renamed": renamed}
            batches = tuple(published(folder / name) for name in names)
            if form is BINARY:
                batches = tuple(replace(batch, md5=None) for batch in batches)
            forms.append(replace(form, archive=archive, batches=batches))
        self.edition = Edition(tuple(forms), COUNT, digest(self.arrays))

    def with_form(self, number: int, **changes: object) -> Edition:
        forms: list[Form] = list(self.edition.forms)
        forms[number] = replace(forms[number], **changes)  # type: ignore[arg-type]
        return replace(self.edition, forms=tuple(forms))

    def read(self, form: str | Path | None = None, edition: Edition | None = None) -> Arrays:
        """Read one of our forms, a path, or what the cache has, and compare it with what was written."""
        path = self.paths[form] if isinstance(form, str) else form
        arrays = read_arrays(path, edition=edition or self.edition, mirrors=())
        assert list(arrays) == list(NAMES)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, self.arrays[name], strict=True)
        return arrays

    def refuses(self, form: str | Path | None, message: str, edition: Edition | None = None) -> None:
        with pytest.raises(InputError, match=message) as caught:
            self.read(form, edition)
        assert caught.value.hint and "\n" not in caught.value.message


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    return Small(tmp_path)


@pytest.mark.parametrize("kind", ["", " itself", " archive", " archive itself", " archive renamed"])
@pytest.mark.parametrize("form", ["py", "bin"])
def test_every_form_gives_the_same_arrays_decoded_and_mapped(small: Small, form: str, kind: str) -> None:
    small.read(form + kind)
    second = small.read(form + kind)
    assert all(isinstance(array, np.memmap) for array in second.values())
    second["train_images"][:] = 0
    small.read(form + kind)  # a change of the mapped images is not in the cache
    assert not list(cache_folder().rglob("*.part"))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_damaged_batch_is_named(small: Small, form: str, name: str, decoded: bool) -> None:
    if decoded:
        small.read(form)
    path = small.paths[f"{form} itself"] / (name if form == "py" else f"{name}.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    small.refuses(form, rf"{name}.* cut short")
    path.write_bytes(altered(whole))
    small.refuses(form, rf"{name}.* altered|{path.parent.name} holds other images")
    path.unlink()
    small.refuses(f"{form} itself", rf"{name}.* is missing")
    path.write_bytes(whole)
    small.read(form)


@pytest.mark.parametrize("form", ["py archive itself", "bin archive itself"])
def test_a_damaged_archive_is_named(small: Small, form: str) -> None:
    path, number = small.paths[form], int(form.startswith("bin"))
    whole = path.read_bytes()
    path.write_bytes(altered(whole))
    small.refuses(form, f"{path.name} is altered")
    path.write_bytes(whole[:-7])
    small.refuses(form, f"{path.name} is cut short")
    path.write_bytes(whole[: len(whole) // 2])
    small.refuses(form, f"{path.name} cannot be read", small.with_form(number, archive=published(path)))
    archive = tar(path, "folder", {"other": b"abc"})
    small.refuses(form, f"{path.name} holds no whole data_batch_1", small.with_form(number, archive=archive))


def test_a_label_out_of_range_in_the_binary_form_is_named(small: Small) -> None:
    path = small.paths["bin itself"] / "data_batch_2.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    small.refuses("bin", r"data_batch_2\.bin holds a label outside")


PIXELS = np.zeros((4, 3072), "u1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({b"data": os.mkdir, b"labels": []}, "wants to import"),
        ([1, 2], "not hold 4 labelled images"),
        ({b"data": PIXELS}, "not hold"),
        ({b"data": 3, b"labels": [1]}, "not hold"),
        ({b"data": PIXELS[:, :9], b"labels": [0] * 4}, "not hold"),
        ({b"data": PIXELS, b"labels": [0] * 5}, "not hold"),
        ({b"data": PIXELS, b"labels": [0, 0, 0, "1"]}, "not hold"),
        ({b"data": PIXELS.astype("f4"), b"labels": [0] * 4}, "not hold"),
        ({b"data": PIXELS, b"labels": [0, 1, 2, 10]}, "label outside"),
        ({b"data": PIXELS, b"labels": [0, 1, 2, 2**70]}, "label outside"),
    ],
)
def test_a_pickle_of_other_things_is_named_even_where_its_sum_is_right(
    small: Small, value: object, message: str
) -> None:
    path = small.paths["py itself"] / "data_batch_2"
    path.write_bytes(pickle.dumps(value, 4))
    small.refuses("py", "data_batch_2")
    batches = tuple(published(path.parent / name) for name in BATCHES)
    small.refuses("py", f"data_batch_2.*{message}", small.with_form(0, batches=batches))


def test_a_path_without_the_data_is_an_error_even_where_the_cache_has_it(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_here()
    small.read("py")
    small.read()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("hello")
    small.refuses(empty, r"empty holds no CIFAR-10\n.*cifar-10-batches-py")
    small.refuses(tmp_path / "nowhere", "nowhere does not exist")
    small.refuses(empty / "notes.txt", r"notes\.txt is not an archive")
    monkeypatch.setenv("FIRSTLIGHT_DATA", str(empty))
    small.refuses(None, "from FIRSTLIGHT_DATA")
    small.read("bin")
    monkeypatch.setenv("FIRSTLIGHT_DATA", str(small.paths["py"]))
    small.read()
    assert is_here()


def test_an_archive_put_into_the_cache_is_read(small: Small) -> None:
    cache_folder().mkdir()
    shutil.copy(small.paths["bin archive itself"], cache_folder())
    small.read()
    assert is_here()


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
    ways = ("--data-dir", "FIRSTLIGHT_DATA", "cifar-10-binary.tar.gz", str(cache_folder()), "shapes.demo")
    assert all(way in caught.value.hint for way in ways)


def an_array_of_objects(whole: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    return file.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[:-3],
    "altered": altered,
    "empty": lambda whole: b"",
    "header": lambda whole: b"?" * 200 + whole[200:],
    "objects": an_array_of_objects,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_a_damaged_cache_is_decoded_again(small: Small, name: str, damage: str) -> None:
    small.read("py")
    (path,) = cache_folder().rglob(f"{name}.npy")
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(DAMAGES[damage](whole))
    small.read("py")
    small.read()


def test_a_damaged_record_of_verified_files_only_costs_time(small: Small) -> None:
    small.read("py")
    (record,) = cache_folder().rglob("verified.txt")
    for text in (b"", b"\n\n", b"?" * 99, b"\xff\x00"):
        record.write_bytes(text)
        small.read()
        record.write_bytes(text)
        small.read("py")


def test_a_cache_that_cannot_be_written_is_done_without(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small.paths["py"] / "file").write_text("in the way")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(small.paths["py"] / "file" / "cache"))
    assert not any(isinstance(array, np.memmap) for array in small.read("py").values())


def test_decoding_at_the_same_time_leaves_whole_files(small: Small) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(small.read, ["py archive"] * 6))) == 6
    assert all(isinstance(array, np.memmap) for array in small.read().values())
    assert not list(cache_folder().rglob("*.part"))


def test_load_gives_image_sets(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "read_arrays", small.read)
    for _ in range(2):  # decoded, then mapped
        train, test = Cifar10().load(small.paths["py"])
    assert (len(train), len(test)) == (8, 4)
    assert train.facts == test.facts == Cifar10().facts()
    assert (train.names[0], test.names[3]) == ("train/00000", "test/00003")
    np.testing.assert_array_equal(train.images.numpy(), small.arrays["train_images"])


def test_the_mirrors_have_the_published_archives_and_the_slow_one_is_last() -> None:
    assert len(MIRRORS) >= 3 and "toronto" in MIRRORS[-1].url
    for mirror in MIRRORS:
        assert mirror.url.startswith("https://") and mirror.file.name in mirror.url
        assert mirror.file in (PYTHON.archive, BINARY.archive)


def test_the_real_set_is_the_same_in_both_forms(
    cifar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = Cifar10().load(cifar_folder)
    for part, count in ((train, 5000), (test, 1000)):
        assert part.images.shape == (10 * count, 3, 32, 32)
        assert torch.bincount(part.labels).tolist() == [count] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    np.testing.assert_allclose(statistics(train.images), (MEAN, STD), rtol=0, atol=1e-12)
    meta = (cifar_folder / "cifar-10-batches-py" / "batches.meta").read_bytes()
    positions = [meta.index(name.encode()) for name in CLASSES]
    assert positions == sorted(positions)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images = torch.cat([train.images, test.images]).flatten(1)
    rows = torch.cat([torch.cat([train.labels, test.labels])[:, None].to(torch.uint8), images], dim=1)
    for file, part in zip(CIFAR10.forms[1].batches, rows.split(10_000), strict=True):
        (folder / file.name).write_bytes(part.numpy().tobytes())
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no cache here")
    again = Cifar10().load(tmp_path)
    assert torch.equal(again[0].images, train.images) and torch.equal(again[1].labels, test.labels)
    shutil.rmtree(folder)
