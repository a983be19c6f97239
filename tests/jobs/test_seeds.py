"""Several seeds of one recipe: each a whole run, and the scatter over them; stopped, they go on."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import firstlight
from firstlight.errors import InputError, RunFailed
from firstlight.insight.intervals import student_quantile, wilson_interval
from firstlight.jobs.seeds import SEEDS, Seeds
from firstlight.jobs.train import train
from firstlight.record import record
from firstlight.record.checkpoints import Checkpoints
from firstlight.record.run_folder import RunFolder
from firstlight.run import Run

SMALL: dict[str, Any] = {
    "train": 120,
    "test": 60,
    "width": 2,
    "batch_size": 20,
    "epochs": 2,
    "peak_lr": 0.1,
    "min_lr": 0.01,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(autouse=True)
def in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train below an empty folder, and draw no pictures, which take longer than these runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "report", lambda run: run.folder.write(record.REPORT, "drawn"))
    yield


def written(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / SEEDS).read_text())
    assert isinstance(values, dict)
    return values


def test_seeds_are_whole_runs_and_their_scatter_is_said_and_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = firstlight.train("shapes.demo", seeds=3, seed=10, **SMALL)
    said = capsys.readouterr().out
    assert isinstance(found, firstlight.Seeds) and found.path == Path("runs/shapes.demo")
    folders = [found.path / f"seed-{seed}" for seed in (10, 11, 12)]
    runs = [firstlight.open_run(folder) for folder in folders]
    assert [run.recipe.seed for run in runs] == [10, 11, 12]
    assert found.accuracies == tuple(run.summary.test_accuracy for run in runs)
    assert found.accuracies_tta == tuple(run.summary.test_accuracy_tta for run in runs)
    assert found.mean == pytest.approx(statistics.mean(found.accuracies))
    assert found.sd == pytest.approx(statistics.stdev(found.accuracies)) and found.sd
    reach = student_quantile(2) * found.sd / 3**0.5
    assert found.interval == pytest.approx((max(0, found.mean - reach), min(1, found.mean + reach)))
    assert found.train_seconds == pytest.approx(statistics.mean(run.summary.train_seconds for run in runs))
    # The cost of all is said before the first of them starts.
    assert "3 seeds of shapes.demo: about" in said.split("seed 10, 1 of 3")[0]
    assert "3 times" in said.split("seed 10, 1 of 3")[0]
    assert str(found) in said and "over seeds" in str(found) and f"{found.sd:.2%}" in str(found)
    values = written(found.path)
    assert values["schema"] == 2 and values["finished"] is True and values["seeds"] == [10, 11, 12]
    assert [row["test_accuracy"] for row in values["runs"]] == list(found.accuracies)
    assert values["test_accuracy"] == {
        "mean": found.mean,
        "sd": found.sd,
        "interval_95": list(found.interval),
        "interval_over": "seeds",
    }
    assert values["test_accuracy_tta"]["mean"] == pytest.approx(statistics.mean(found.accuracies_tta))
    assert values["train_seconds"] == found.train_seconds
    assert not list(found.path.rglob(".*"))


def test_the_same_seeds_alone_give_the_same_accuracy_and_the_next_folder_has_a_number() -> None:
    both = train("shapes.demo", seeds=2, quiet=True, **SMALL)
    alone = train("shapes.demo", seed=1, quiet=True, **SMALL)
    assert alone.summary.test_accuracy == both.accuracies[1]
    assert (both.path, alone.folder.path) == (Path("runs/shapes.demo"), Path("runs/shapes.demo-2"))


def test_one_seed_has_the_interval_over_images_and_says_so() -> None:
    found = train("shapes.demo", seeds=1, quiet=True, out="one", **SMALL)
    assert found.sd is None
    right = round(60 * found.mean)
    assert found.interval == pytest.approx(wilson_interval(right, 60))
    assert found.interval_tta == pytest.approx(wilson_interval(round(60 * found.mean_tta), 60))
    assert "1 seed:" in str(found) and "over test images" in str(found) and "sd" not in str(found)
    assert written(Path("one"))["test_accuracy"]["interval_over"] == "images"


@pytest.mark.parametrize("count", [0, -1, "0", "few", "", "2.5", 2.5, True, None])
def test_no_number_of_seeds_is_refused_and_leaves_nothing(count: Any, tmp_path: Path) -> None:
    if count is None:  # is not asked for
        assert isinstance(train("shapes.demo", seeds=None, quiet=True, **SMALL), Run)
        return
    with pytest.raises(InputError, match="whole number of at least 1"):
        train("shapes.demo", seeds=count, **SMALL)
    assert not list(tmp_path.iterdir())


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no CIFAR-10"):
        train("cifar10.assignment", seeds=2, data_dir=tmp_path)
    with pytest.raises(InputError, match="larger than the 120 training images"):
        train("shapes.demo", seeds=2, **{**SMALL, "batch_size": 500})
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="exists already"):
        train("shapes.demo", seeds=2, out="taken", **SMALL)
    (tmp_path / "taken" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=rf"holds no {SEEDS}"):
        train("shapes.demo", seeds=2, out="taken", resume=True, **SMALL)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def stopped_in(seed: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Press Ctrl-C at the end of the first epoch of one of three seeds."""
    save = Checkpoints.save

    def save_and_interrupt(self: Checkpoints, *values: Any) -> None:
        save(self, *values)
        if self.path.parent.name == f"seed-{seed}":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("shapes.demo", seeds=3, **{**SMALL, **settings})


def test_stopped_within_a_seed_it_goes_on_there_and_keeps_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("shapes.demo", seeds=3, quiet=True, out="whole", **SMALL)
    stopped_in(1, monkeypatch, out="out")
    assert "1 of 3 seeds are finished; the same command with --resume goes on in out" in (
        capsys.readouterr().out
    )
    values = written(Path("out"))
    assert values["finished"] is False and [row["seed"] for row in values["runs"]] == [0]
    assert "test_accuracy" not in values
    first = (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns
    found = train("shapes.demo", seeds=3, out="out", resume=True, **SMALL)
    said = capsys.readouterr().out
    assert "for the 2 that are left" in said and "going on after step 6 of 12" in said
    assert (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns == first
    assert (found.accuracies, found.accuracies_tta) == (whole.accuracies, whole.accuracies_tta)
    assert written(Path("out"))["finished"] is True
    # Once more: nothing is trained, the same is said.
    again = train("shapes.demo", seeds=3, out="out", resume="auto", **SMALL)
    assert "finished already" in capsys.readouterr().out and again.accuracies == whole.accuracies


def test_resume_finds_the_newest_unfinished_seeds_and_leaves_single_runs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", seeds=3, resume=True, **SMALL)
    train("shapes.demo", quiet=True, **SMALL)
    stopped_in(0, monkeypatch, quiet=True)
    assert not written(Path("runs/shapes.demo-2"))["runs"]
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", resume=True, **SMALL)
    found = train("shapes.demo", seeds=3, resume="auto", quiet=True, **SMALL)
    assert found.path == Path("runs/shapes.demo-2") and len(found.runs) == 3
    assert train("shapes.demo", seeds=1, resume="auto", quiet=True, **SMALL).path == Path(
        "runs/shapes.demo-3"
    )


def test_more_seeds_can_be_added_but_fewer_or_others_are_refused() -> None:
    two = train("shapes.demo", seeds=2, out="out", quiet=True, **SMALL)
    with pytest.raises(InputError, match="begun with 2 seeds, not 1"):
        train("shapes.demo", seeds=1, out="out", resume=True, **SMALL)
    with pytest.raises(InputError, match="begun with seed 0, not 1"):
        train("shapes.demo", seeds=2, seed=1, out="out", resume=True, **SMALL)
    with pytest.raises(InputError, match=r"begun with peak_lr 0\.1, not 0\.2"):
        train("shapes.demo", seeds=2, out="out", resume=True, **{**SMALL, "peak_lr": 0.2})
    with pytest.raises(InputError, match="begun with precision fp32, not bf16"):
        train("shapes.demo", seeds=3, out="out", resume=True, **{**SMALL, "precision": "bf16"})
    three = train("shapes.demo", seeds=3, out="out", resume=True, quiet=True, **SMALL)
    assert three.accuracies[:2] == two.accuracies and len(three.accuracies) == 3


def test_a_seed_that_diverges_says_how_far_all_of_them_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(firstlight.Diverged):
        train("shapes.demo", seeds=2, **{**SMALL, "peak_lr": 1e30, "min_lr": 1e29})
    assert "0 of 2 seeds are finished" in capsys.readouterr().out


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunFolder.write

    def full(self: RunFolder, name: str, content: bytes | str) -> None:
        if name == SEEDS and (self.path / "seed-0").exists():
            raise OSError(28, "No space left on device", str(self.path / name))
        write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(RunFailed, match=r"cannot write .*No space left"):
        train("shapes.demo", seeds=2, quiet=True, out="out", **SMALL)
    monkeypatch.setattr(RunFolder, "write", write)
    found: Seeds = train("shapes.demo", seeds=2, quiet=True, out="out", resume=True, **SMALL)
    assert len(found.runs) == 2


def test_in_the_shell_a_wrong_number_of_seeds_is_two_lines_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "firstlight.cli", "train", "shapes.demo", "--seeds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [
        "firstlight: seeds takes a whole number of at least 1, not 0",
        "For example: --seeds 5",
    ]
    assert not list(tmp_path.iterdir())
