"""What every benchmark shares, and that each can be imported and asked for its options."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
from tiny import CPU

from benchmarks import measure
from benchmarks.measure import in_own_process, read_rows, record, seconds_in_turn

FILES = sorted(measure.BENCHMARKS.rglob("*.py"))
SCRIPTS = [file for file in FILES if "__main__" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_script_says_how_it_is_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.relative_to(measure.BENCHMARKS.parent)
    name = ".".join(path.with_suffix("").parts)
    module = importlib.import_module(name)
    assert module.__doc__ is not None
    if file.stem != "gpu_worker":
        assert f"python -m {name}" in module.__doc__ or f"SCRIPT={path}" in module.__doc__
    monkeypatch.setattr(sys, "argv", [file.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.split("\n")[0].split()[-1] in capsys.readouterr().out


def test_a_row_says_where_it_was_measured_and_new_values_become_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, path = str(measure.BENCHMARKS / "speed" / "reference.py"), tmp_path / "rows.csv"
    record(script, CPU, path, ratio=2.5)
    record(script, None, path, ratio=3, hardware="elsewhere", date="2026-01-01", note=None)
    record(script, None, path, keep=False, ratio=1 / 3)
    assert capsys.readouterr().out.endswith("\nratio 0.33333\n")
    first, second = read_rows(path)
    expected = {"script": "benchmarks/speed/reference.py", "hardware": "test", "precision": "fp32"}
    assert first.items() >= {**expected, "threads": "1", "ratio": "2.5", "note": ""}.items()
    assert first["torch"] and first["date"]
    expected = {"hardware": "elsewhere", "date": "2026-01-01", "ratio": "3", "device": ""}
    assert second.items() >= expected.items()
    assert read_rows(tmp_path / "none.csv") == []


def test_ways_are_timed_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = seconds_in_turn(ways, 2, warm_up=1, wait=lambda: calls.append("wait"))
    assert [call for call in calls if call != "wait"] == list("ababab") and calls.count("wait") == 12
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_work_runs_in_a_process_of_its_own_with_an_environment_of_its_own() -> None:
    assert in_own_process(os.getenv, "FIRSTLIGHT_KERNELS", FIRSTLIGHT_KERNELS="plain") == "plain"
    assert in_own_process(os.getpid) != os.getpid() and os.getenv("FIRSTLIGHT_KERNELS") != "plain"
    with pytest.raises(ZeroDivisionError):
        in_own_process(divmod, 1, 0)
