"""The fp32 kernels for NEON, cross-compiled and run by an emulator: right, and of unknown speed."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from firstlight.machine.kernels import library

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_they_equal_direct_sums_in_fp64(tmp_path: Path) -> None:
    if not (shutil.which(COMPILER) and shutil.which(EMULATOR)):
        pytest.skip(f"needs {COMPILER} and {EMULATOR}")
    folder = Path(library.__file__).parent
    units = [str(folder / name) for name in library._NEON.sources if name.endswith(".cpp")]
    flags = [flag for flag in (*library._FLAGS, *library._NEON.flags) if flag not in ("-fPIC", "-shared")]
    program = tmp_path / "neon"
    driver = str(Path(__file__).with_name("neon.cpp"))
    subprocess.run([COMPILER, *flags, "-static", *units, driver, "-o", str(program)], check=True)
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 14, done.stdout + done.stderr


def test_on_aarch64_they_are_taken_where_they_are_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", "")
    assert "FIRSTLIGHT_KERNELS=neon" in library._misfit(torch.float32)
    monkeypatch.setenv("FIRSTLIGHT_KERNELS", "neon")
    assert library._misfit(torch.float32) == "" and library._variants(torch.float32) == [library._NEON]
    assert library._misfit(torch.bfloat16) == "none are compiled for linux on aarch64"
