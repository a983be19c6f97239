"""The doctor: green where all is well, and the right line red where something is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from firstlight.jobs import doctor
from firstlight.jobs.doctor import Check, examine, table


def ask(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firstlight", "doctor", *words]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )


def line(output: str, name: str) -> str:
    return next(
        row for row in output.splitlines() if row.count("|") > 2 and row.split("|")[2].strip() == name
    )


def test_a_sound_machine_is_green_and_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    done = ask(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("all is well")
    assert "✗" not in done.stdout and "steps operation by operation" in line(done.stdout, "machine")
    assert "ended with the same bits" in line(done.stdout, "resume")
    assert metadata.version("torch") in line(done.stdout, "torch")
    assert not list(tmp_path.iterdir())


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> dict[str, Check]:
    """Examine the installation as if packages had other versions; an empty one means not installed."""
    real = metadata.version

    def version(name: str) -> str:
        given = versions.get(name)
        if given == "":
            raise metadata.PackageNotFoundError(name)
        return given or real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "_resume", lambda: pytest.fail("a broken installation must not be run"))
    return {check.name: check for check in examine()}


def test_packages_that_are_old_or_missing_are_red_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = installed(monkeypatch, torch="2.1.0+cu118", safetensors="")
    assert checks["torch"].good is False and "2.9 or newer" in checks["torch"].result
    assert checks["torch"].hint == "pip install 'torch>=2.9'"
    assert checks["safetensors"].result == "not installed"
    assert checks["numpy"].good is True and checks["machine"].good is False


def test_a_package_that_does_not_import_is_red_in_the_shell(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    done = ask(tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    row = line(done.stdout, "torch")
    assert "✗" in row and "libtorch_cpu.so" in row and "pip install --force-reinstall torch" in row
    assert "to mend: torch" in done.stdout


def test_a_folder_without_the_data_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_resume", lambda: Check("resume", True, ""))
    checks = {check.name: check for check in examine(tmp_path)}
    assert checks["data"].good is False and str(tmp_path) in checks["data"].result and checks["data"].hint
    # Another test may have filled the shared one.
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "empty"))
    assert {check.name: check for check in examine()}["data"].good is None, "no data at all is no fault"


def test_a_full_disk_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 50_000_000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    check = doctor._disk(tmp_path / "runs")
    assert check.good is False and "0.1 GB free" in check.result and "Make room" in check.hint


def test_bits_that_differ_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path, more: list[str]) -> None:
        out.mkdir(exist_ok=True)
        for name in ("model.safetensors", "predictions.safetensors"):
            (out / name).write_text(json.dumps(more))

    monkeypatch.setattr(doctor, "_run", run)
    monkeypatch.setattr(doctor, "_kill_within", lambda out: 7)
    check = doctor._resume()
    assert check.good is False and "step 7" in check.result


def test_the_table_is_markdown() -> None:
    lines = table([Check("torch", True, "2.13"), Check("disk", False, "full", "Make room.")]).splitlines()
    assert lines[0].startswith("|   | check") and set(lines[1]) <= {"|", "-"}
    assert lines[2] == "| ✓ | torch | 2.13 |" and lines[3] == "| ✗ | disk  | full → Make room. |"
