"""Strange machines: no account, no home, no terminal, full disks, other scripts, signals, damaged caches."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import firstlight
from firstlight.cli import main
from firstlight.data.archives import unpacked
from firstlight.machine import storage
from firstlight.machine.kernels import library
from firstlight.page.page import write_page

SOURCE = Path(firstlight.__file__).parents[1]
TINY = (
    *("train", "shapes.demo", "--epochs", "1", "--device", "cpu", "--precision", "fp32"),
    *(word for each in ("train=120", "test=30", "width=2", "batch_size=20") for word in ("--set", each)),
    *(word for each in ("validation=0", "peak_lr=0.05", "min_lr=0.001") for word in ("--set", each)),
)
SETPRIV = shutil.which("setpriv")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or SETPRIV is None,
    reason="needs root and setpriv to become a user without an account",
)


def environment(**changes: str) -> dict[str, str]:
    """An environment with next to nothing in it."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def command(*words: str | bytes | Path) -> list[str | bytes | Path]:
    return [sys.executable, "-m", "firstlight", *words]


def run(
    words: list[str | bytes | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run without a terminal, and without standard input."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        start_new_session=True,
    )


def as_stranger(*words: str | bytes | Path) -> list[str | bytes | Path]:
    """The words, by user 12345, who has no account, on one core."""
    core = str(min(os.sched_getaffinity(0)))
    user = [str(SETPRIV), "--reuid", "12345", "--regid", "12345", "--clear-groups"]
    return [*(["taskset", "-c", core] if shutil.which("taskset") else []), *user, *words]


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a user without an account can reach and write to."""
    folder = tmp_path_factory.mktemp("stranger")
    for path in (folder, *folder.parents):
        if path == Path("/tmp") or path.stat().st_uid != os.getuid():
            break
        path.chmod(path.stat().st_mode | 0o055)
    folder.chmod(0o777)
    return folder


@needs_root
def test_a_user_without_an_account_does_the_readmes_main_job(open_folder: Path) -> None:
    reachable = run(as_stranger(sys.executable, "-c", "import torch, firstlight"), open_folder)
    if b"ModuleNotFoundError" in reachable.stderr or b"Permission denied" in reachable.stderr:
        pytest.skip("this installation cannot be read by another user")
    (open_folder / "home").mkdir(mode=0o555)
    home = str(open_folder / "home")
    work = open_folder / "work"
    work.mkdir()
    work.chmod(0o777)
    (open_folder / "home").chmod(0o555)
    try:
        done = run(as_stranger(*command(*TINY)), work, LANG="C", LC_ALL="C", HOME=home)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b"" and b"test accuracy" in done.stdout
        page = work / "runs" / "shapes.demo" / "report.html"
        assert page.stat().st_uid == 12345 and page.stat().st_size > 50_000
        Image.new("RGB", (32, 32)).save(work / "picture.png")
        words = command("predict", "runs/shapes.demo", "picture.png")
        for homeless in ({"HOME": "/nonexistent"}, {}):
            done = run(as_stranger(*words), work, LANG="C", LC_ALL="C", **homeless)
            assert done.returncode == 0 and done.stdout.startswith(b"picture.png  "), done.stderr.decode()
            assert done.stderr == b""
        assert not any((open_folder / "home").iterdir())
    finally:
        shutil.rmtree(Path("/tmp/firstlight-12345"), ignore_errors=True)


@needs_root
def test_a_current_folder_that_is_read_only_is_named_in_one_line(open_folder: Path) -> None:
    work = open_folder / "work"
    work.mkdir(mode=0o555)
    done = run(as_stranger(*command(*TINY)), work, HOME="/nonexistent")
    shutil.rmtree(Path("/tmp/firstlight-12345"), ignore_errors=True)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 2, lines
    assert lines[0].startswith("firstlight: cannot make the run folder") and "Permission" in lines[0]


@needs_root
def test_a_temporary_folder_that_is_full_costs_nothing(tmp_path: Path) -> None:
    full = tmp_path / "tmp"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)])
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk of memory")
    try:
        file = os.open(full / "fill", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(file, b"x" * 4096)
        os.close(file)
        cache = str(tmp_path / "cache")
        done = run(command(*TINY), tmp_path, TMPDIR=str(full), FIRSTLIGHT_CACHE=cache, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr.decode()
        # A run that is written to the full disk says so in one line, and leaves nothing there.
        words = command(*TINY, "--out", full / "run")
        done = run(words, tmp_path, FIRSTLIGHT_CACHE=cache, HOME=str(tmp_path))
        lines = done.stderr.decode().splitlines()
        assert done.returncode in (1, 2) and len(lines) <= 2 and "No space" in lines[0], lines
        assert {path.name for path in full.iterdir()} <= {"fill", "run"}
    finally:
        subprocess.run(["umount", str(full)], check=True)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (b"run \xff\xfe", b"run \\xff\\xfe"),
        ("mit Leerzeichen, 训练 и опыт".encode(), "mit Leerzeichen, 训练 и опыт".encode()),
        (b"bell\x07 and \x1b[31mred\x1b[0m", b"bell\\x07 and \\x1b[31mred\\x1b[0m"),
        (b"two\nlines", b"two\\nlines"),
        (b"-rf $(reboot) `x` 'q' \"", b"-rf $(reboot) `x` 'q' \""),
    ],
)
def test_a_run_in_a_folder_of_any_name_finishes_and_its_name_is_escaped(
    tmp_path: Path, name: bytes, escaped: bytes, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    out = os.path.join(os.fsencode(tmp_path), name)
    monkeypatch.setattr("firstlight.run.Run.report", write_page)  # drawing knows no names
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--out=" + os.fsdecode(out)])
    printed, errors = capfdbinary.readouterr()
    assert not ended.value.code, errors
    assert b"report    " + os.fsencode(tmp_path) + b"/" + escaped + b"/report.html" in printed
    assert os.path.isfile(os.path.join(out, b"report.html"))
    assert not {0x07, 0x1B} & {*printed, *errors}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_signal_at_any_moment_leaves_nothing_half_made(tmp_path: Path, number: int) -> None:
    for delay in (0.0, 0.3, 1.0, 1.6):
        out = tmp_path / f"run-{delay}"
        process = subprocess.Popen(
            command(*TINY, "--out", out),
            env=environment(HOME=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        time.sleep(delay)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1].decode()
        # Before our `main`, Python itself is still starting.
        assert "Traceback" not in error or ", in main\n" not in error, error
        if out.exists():
            assert (out / "recipe.json").is_file() and not list(out.rglob("*.aside"))
        assert not list(tmp_path.glob(".run-*.lock"))


def test_ctrl_c_while_torch_is_loading_is_not_lost(tmp_path: Path) -> None:
    # As torch does where NumPy's import, begun from C++, is interrupted.
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    sum(range(10_000))\n"
        "except BaseException:\n"
        "    pass\n"
        "raise ImportError('went on after Ctrl-C')\n"
    )
    # What runs in the background inherits a SIGINT that is ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    words: list[Any] = [sys.executable, "-c", f"{code}from firstlight.cli import main; main()", *TINY]
    done = run(words, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}")
    assert (done.returncode, done.stderr) == (130, b"firstlight: stopped\n")


def test_a_clock_that_jumps_back_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    run = firstlight.train(
        "shapes.demo",
        **{"train": 40, "test": 20, "width": 2, "batch_size": 20, "validation": 0, "epochs": 1},
        **{"peak_lr": 0.05, "min_lr": 0.001, "out": tmp_path / "run", "device": "cpu"},
        **{"precision": "fp32", "quiet": True},
    )
    assert run.is_finished and all(epoch.train_seconds >= 0 for epoch in run.history)


def test_a_home_that_is_not_there_gives_a_folder_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIRSTLIGHT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(storage, "_usual", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage._temporary.cache_clear()
    folder = storage.cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    # Somebody else's folder, or a link, of that name is not used.
    folder.rmdir()
    (tmp_path / "trap").mkdir()
    folder.symlink_to(tmp_path / "trap")
    storage._temporary.cache_clear()
    other = storage.cache_folder()
    assert other != folder and not any((tmp_path / "trap").iterdir())
    storage._temporary.cache_clear()


needs_kernels = pytest.mark.skipif(
    bool(library._misfit(torch.bfloat16)), reason="this chip runs no compiled kernels"
)


@pytest.fixture
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the compiled library and nothing else."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path))
    assert isinstance(library._build(library._BF16), ctypes.CDLL)
    (path,) = tmp_path.glob("kernels-*.so")
    return path


@needs_kernels
@pytest.mark.parametrize("damage", ["cut to 3,000 bytes", "a byte is changed", "empty", "link", "writable"])
def test_a_damaged_library_in_the_cache_is_built_again_and_never_loaded(
    own_library: Path, damage: str
) -> None:
    data = own_library.read_bytes()
    aside = own_library.with_name("good.so")
    aside.write_bytes(data)
    own_library.unlink()
    changed = {
        "cut to 3,000 bytes": data[:3000],
        "a byte is changed": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "empty": b"",
    }
    if damage in changed:
        own_library.write_bytes(changed[damage])
    elif damage == "link":
        own_library.symlink_to(aside)
    else:
        own_library.write_bytes(data)
        own_library.chmod(0o666)
    assert library._verified(own_library) is None
    if damage != "cut to 3,000 bytes":  # building takes seconds
        return
    assert isinstance(library._build(library._BF16), ctypes.CDLL)
    (again,) = own_library.parent.glob("kernels-*.so")
    assert library._verified(again) is not None and not again.is_symlink()


@pytest.mark.parametrize("change", ["other bytes, the same time", "a link", "gone", "a list that is none"])
def test_an_archive_whose_files_changed_in_the_cache_is_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b.txt", "whole")
    (tmp_path / "secret").write_text("other")
    with unpacked(archive) as (folder, _):
        member = folder / "a" / "b.txt"
        state = member.stat()
        if change.startswith("other"):
            member.write_text("other")
            os.utime(member, ns=(state.st_atime_ns, state.st_mtime_ns))
        elif change == "a list that is none":
            (folder.parent / "members.json").write_text('{"skipped": 7, "sha256": []}')
        else:
            member.unlink()
            if change == "a link":
                member.symlink_to(tmp_path / "secret")
    with unpacked(archive) as (folder, skipped):
        assert (folder / "a" / "b.txt").read_text() == "whole" and skipped == []
        assert not (folder / "a" / "b.txt").is_symlink()


@needs_kernels
def test_two_processes_may_build_the_library_at_once(tmp_path: Path) -> None:
    code = "from firstlight.machine.kernels.library import load; print(bool(load()))"
    variables = environment(FIRSTLIGHT_CACHE=str(tmp_path), HOME=str(tmp_path))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [b"True"] * 2
    libraries = list(tmp_path.glob("kernels-*.so"))
    assert libraries and all(library._verified(path) for path in libraries)
    assert {path.suffix for path in tmp_path.iterdir()} == {".so"}


def test_waiting_threads_soon_sleep_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    from firstlight.machine.waiting import let_threads_sleep

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    let_threads_sleep()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == ("2000", "0")
    # It is set before OpenMP is loaded, by the shell's verbs and by the first name that a notebook asks for.
    code = (
        "import os, sys, firstlight; firstlight.recipes; print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "firstlight.train; print('torch' in sys.modules)"
    )
    variables = {key: value for key, value in environment().items()}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.stdout.split() == ["2000", "True"], done.stderr
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("KMP_BLOCKTIME")
