"""Many pictures are read by several processes, to the same bits; after a stop the reading goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from folders import folder, picture

from firstlight.data import folder as folder_source
from firstlight.data import folder_cache, folder_parts, stored
from firstlight.data.folder import Folder
from firstlight.data.images import ImageSet
from firstlight.data.stored import StoredImages
from firstlight.errors import RunFailed
from firstlight.machine.storage import cache_folder

COUNTS = {"a": 17, "b": 20}


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read small folders as if they were large: parts of 5 pictures, by two processes, into an own cache."""
    monkeypatch.setattr(folder_source, "MANY", 1)
    monkeypatch.setattr(folder_parts, "_PART", 5)
    monkeypatch.setattr(folder_parts, "usable_cores", lambda: 2)
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))


def by_threads(root: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[ImageSet, ImageSet]:
    with monkeypatch.context() as patch:
        patch.setattr(folder_source, "MANY", 10**6)
        patch.setenv("FIRSTLIGHT_CACHE", f"{os.environ['FIRSTLIGHT_CACHE']}-of-threads")
        return Folder(root, **fields).load()


def facts(images: ImageSet) -> Any:
    return images.digest, [*images.names], images.mean, images.std, images.notes


@pytest.mark.parametrize("divided", [False, True])
def test_pixels_split_and_notes_are_those_of_a_small_folder(
    divided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    for part in ("train", "test") if divided else ("",):
        folder(root / part, COUNTS)
        (root / part / "a" / "broken.png").write_bytes(b"\x89PNG")
    folder(root / ("train" if divided else ""), {"b": 0})
    first = Folder(root, side=32).load()
    second = by_threads(root, monkeypatch, side=32)
    assert [facts(each) for each in first] == [facts(each) for each in second]
    assert any("broken.png" in note for note in first[0].notes)
    assert not [*cache_folder().glob("folder-*/reading-*")], "what was read stays in the cache alone"
    monkeypatch.setattr(folder_parts.subprocess, "Popen", None)
    assert facts(Folder(root, side=32).load()[0]) == facts(first[0])


def test_a_set_that_exceeds_memory_is_never_held_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_threads(folder(tmp_path / "root", COUNTS), monkeypatch)
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", "100K")
    train, test = Folder(tmp_path / "root").load()
    assert isinstance(train.images, StoredImages) and isinstance(test.images, StoredImages)
    assert [facts(train), facts(test)] == [facts(each) for each in expected]
    assert isinstance(train.split(4, torch.Generator())[0].images, StoredImages)


def test_parts_that_were_read_whole_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", COUNTS)
    expected = by_threads(root, monkeypatch)
    given: list[int] = []
    read = folder_parts._read

    def stopped(tasks: Any, *others: Any) -> None:
        read(tasks[:3], *others)
        raise KeyboardInterrupt

    def counted(tasks: Any, *others: Any) -> None:
        given.extend(task["first"] for task in tasks)
        read(tasks, *others)

    monkeypatch.setattr(folder_parts, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        Folder(root).load()
    (left,) = cache_folder().glob("folder-*/reading-*/")
    assert len([*left.glob("part-*.json")]) == 3
    # Of these three, the pixels of one are not those that were read: a machine that lost its power.
    with (left / "rows.npy").open("r+b") as file:
        file.seek(128 + 6 * 3072)
        file.write(b"\0" * 3072)
    monkeypatch.setattr(folder_parts, "_read", counted)
    assert [facts(each) for each in Folder(root).load()] == [facts(each) for each in expected]
    assert given == [5, 15, 20, 25, 30, 35]


def test_the_processes_that_read_pictures_import_no_torch() -> None:
    code = folder_parts._START.replace("work()", "print('torch' in sys.modules)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=environment, text=True) == "False\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_set_that_was_stopped_while_its_images_were_moved_is_read_again_where_they_were(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", {"a": 30, "b": 30})
    expected = by_threads(root, monkeypatch)
    given: list[int] = []
    read = folder_parts._read

    class Stopping:
        def __init__(self, sha: Any) -> None:
            self.sha, self.moved = sha, 0

        def update(self, images: Any) -> None:
            self.moved += 1
            if self.moved == 4:
                raise error
            self.sha.update(images)

        def hexdigest(self) -> str:
            return str(self.sha.hexdigest())

    def counted(tasks: Any, *others: Any) -> None:
        given.extend(task["first"] for task in tasks)
        read(tasks, *others)

    monkeypatch.setattr(folder_parts, "_read", counted)
    monkeypatch.setattr(stored, "_MOVED_AT_ONCE", 4)
    with monkeypatch.context() as patch:
        whole = hashlib.sha256
        patch.setattr(
            folder_cache.hashlib,
            "sha256",
            lambda data: Stopping(whole(data)) if data.startswith(b"images") else whole(data),
        )
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RunFailed):
            Folder(root).load()
    assert len(given) == 12
    given.clear()
    assert [facts(each) for each in Folder(root).load()] == [facts(each) for each in expected]
    assert 0 < len(given) < 6, "only what was written over is read again"


def test_without_room_to_move_them_images_are_read_from_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", COUNTS)
    expected = by_threads(root, monkeypatch)

    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stored.tempfile, "TemporaryFile", full)
        assert [facts(each) for each in Folder(root).load()] == [facts(each) for each in expected]
    assert [facts(each) for each in Folder(root).load()] == [facts(each) for each in expected]


def test_a_killed_reading_goes_on_and_leaves_no_process_behind(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", {"a": 30, "b": 30})
    code = (
        "import sys, time; from firstlight.data import folder, folder_parts; "
        "folder.MANY, folder_parts._PART, folder_parts.usable_cores = 1, 5, lambda: 2; "
        "folder_parts._START = 'import time; from firstlight.data import folder_worker as w; "
        "one = w.read_picture; w.read_picture = lambda *v: (time.sleep(0.1), one(*v))[1]; w.work()'; "
        "folder.Folder(sys.argv[1]).load()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(root)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(parts := [*cache_folder().glob("folder-*/reading-*/part-*.json")]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    (left,) = cache_folder().glob("folder-*/reading-*/")
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:  # until each process has come to the end of its part
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    whole = [*left.glob("part-*.json")]
    assert len(parts) <= len(whole) <= len(parts) + 4 < 12 and not [*left.glob("*.part")]
    before = {path: path.stat().st_mtime_ns for path in whole}
    read = folder_parts._read
    kept: dict[Path, int] = {}

    def look(tasks: Any, *others: Any) -> None:
        read(tasks, *others)
        kept.update({path: path.stat().st_mtime_ns for path in whole})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_parts, "_read", look)
        train, test = Folder(root).load()
    assert len(train) + len(test) == 60 and kept == before


def test_a_process_that_dies_is_one_line_and_what_was_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", COUNTS)
    dies = (
        "import os, signal; from firstlight.data import folder_worker as w; one = w.read_picture; "
        "w.read_picture = lambda picture, *v: os.kill(os.getpid(), signal.SIGKILL) "
        "if picture.name == 'b/7.png' else one(picture, *v); w.work()"
    )
    with monkeypatch.context() as patch:
        patch.setattr(folder_parts, "_START", dies)
        with pytest.raises(RunFailed, match="ended before its time") as caught:
            Folder(root).load()
    assert "(SIGKILL)" in caught.value.message and "goes on where it stopped" in caught.value.hint
    assert [*cache_folder().glob("folder-*/reading-*/rows.npy")]
    assert len(Folder(root).load()[0]) == 30


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "root", COUNTS)
    full = (
        "from firstlight.data import folder_worker as w; "
        "exec('def whole(path): raise OSError(28, \"No space left on device\", str(path))'); "
        "w.whole = whole; w.work()"
    )
    with monkeypatch.context() as patch:
        patch.setattr(folder_parts, "_START", full)
        with pytest.raises(RunFailed, match=r"cannot write .*No space left on device") as caught:
            Folder(root).load()
        assert "Make room" in caught.value.hint
        patch.setattr(folder_parts.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        patch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "other"))
        with pytest.raises(RunFailed, match="GB of disk"):
            Folder(root).load()
    assert len(Folder(root).load()[0]) == 30


def test_ctrl_c_ends_the_processes_and_keeps_their_parts(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", COUNTS)
    code = (
        # Where tests run in the background, a shell has told them to ignore Ctrl-C.
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from firstlight.data import folder, folder_parts; "
        "folder.MANY, folder_parts._PART, folder_parts.usable_cores = 1, 5, lambda: 2; "
        "folder_parts._START = 'import time; from firstlight.data import folder_worker as w; "
        "w.read_picture = lambda *v: time.sleep(1000); w.work()'\n"
        "try: folder.Folder(sys.argv[1]).load()\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not [*cache_folder().glob("folder-*/reading-*/thumbnails.npy")]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    try:
        assert process.communicate(timeout=60)[0] == "stopped\n"
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_second_process_waits_and_finds_what_the_first_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "root", COUNTS)
    expected = Folder(root).load()
    (entry,) = cache_folder().glob("folder-*/*/")
    (entry / "facts.json").rename(entry / "aside")
    lock = FileLock(entry.parent / f"reading-{entry.name}.lock")
    lock.acquire()

    class Held:
        """The first process ends while the second waits."""

        def __init__(self, **_: Any) -> None:
            (entry / "aside").rename(entry / "facts.json")
            lock.release()

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(folder_parts, "tqdm", Held)
    monkeypatch.setattr(folder_source, "read_in_parts", None)
    assert facts(Folder(root).load()[0]) == facts(expected[0])


def test_what_another_reading_left_is_removed(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", COUNTS)
    Folder(root).load()
    (source,) = cache_folder().glob("folder-*")
    (source / "reading-old").mkdir()
    picture(root / "a" / "new.png")
    Folder(root).load()
    assert not (source / "reading-old").exists()


def test_near_copies_among_too_many_pictures_are_not_looked_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_source, "MOST_COMPARED", 30)
    root = folder(tmp_path / "root", COUNTS)
    picture(root / "a" / "copy.png", seed=1)
    picture(root / "b" / "copy.png", seed=1)
    train, test = Folder(root).load()
    assert any("near copies are not looked for among more than 30 pictures" in note for note in train.notes)
    assert ("a/copy.png" in train.names) == ("b/copy.png" in train.names)
    assert 0 < len(test) < 12
    assert not json.loads(json.dumps([note for note in train.notes if "alike" in note]))
