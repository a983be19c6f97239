"""Several seeds of one recipe: each a whole run, and the scatter over them; stopped, they go on."""

from __future__ import annotations

import json
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest

import firstlight
from firstlight.errors import InputError, RunFailed
from firstlight.insight.intervals import student_quantile, wilson_interval
from firstlight.jobs.seeds import Seeds
from firstlight.jobs.sweep import sweep
from firstlight.jobs.train import train
from firstlight.recipes import resolve
from firstlight.record import record
from firstlight.record.checkpoints import Checkpoints
from firstlight.record.run_folder import RunFolder
from firstlight.record.sweep import SWEEP, SWEEP_PAGE
from firstlight.run import Run

SMALL: dict[str, Any] = {
    **{"train": 120, "test": 60, "width": 2, "batch_size": 20, "epochs": 2},
    **{"peak_lr": 0.1, "min_lr": 0.01, "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(autouse=True)
def in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train below an empty folder, and draw no pictures, which take longer than these runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "report", lambda run: run.folder.write(record.REPORT, "drawn"))


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / SWEEP).read_text()))


def test_seeds_are_whole_runs_and_their_scatter_is_words_and_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeds = firstlight.train("shapes.demo", seeds=3, seed=10, **SMALL)
    words = capsys.readouterr().out
    assert isinstance(seeds, firstlight.Seeds) and seeds.path == Path("runs/shapes.demo")
    runs = [firstlight.open_run(seeds.path / f"seed-{seed}") for seed in (10, 11, 12)]
    assert [run.recipe.seed for run in runs] == [10, 11, 12]
    assert seeds.accuracies == tuple(run.summary.test_accuracy for run in runs)
    assert seeds.accuracies_tta == tuple(run.summary.test_accuracy_tta for run in runs)
    assert seeds.mean == pytest.approx(statistics.mean(seeds.accuracies))
    assert seeds.sd == pytest.approx(statistics.stdev(seeds.accuracies)) and seeds.sd
    reach = student_quantile(2) * seeds.sd / 3**0.5
    assert seeds.interval == pytest.approx((max(0, seeds.mean - reach), min(1, seeds.mean + reach)))
    assert seeds.train_seconds == pytest.approx(statistics.mean(run.summary.train_seconds for run in runs))
    # The cost of all is words before the first of them starts.
    cost = words.split("seed 10, 1 of 3")[0]
    assert "3 seeds of shapes.demo: about" in cost and "3 times" in cost
    assert str(seeds) in words and "over seeds" in str(seeds) and f"{seeds.sd:.2%}" in str(seeds)
    values = written(seeds.path)
    assert values["schema"] == 2 and values["finished"] is True and values["seeds"] == [10, 11, 12]
    assert [row["test_accuracy"] for row in values["cells"]] == list(seeds.accuracies)
    spread = {"mean": seeds.mean, "sd": seeds.sd, "interval_95": list(seeds.interval)}
    assert values["test_accuracy"] == spread | {"interval_over": "seeds"}
    assert values["test_accuracy_tta"]["mean"] == pytest.approx(statistics.mean(seeds.accuracies_tta))
    assert values["train_seconds"] == seeds.train_seconds
    assert not list(seeds.path.rglob(".*"))


def test_a_seed_alone_gives_the_same_accuracy_and_the_next_folder_has_a_number() -> None:
    both = train("shapes.demo", seeds=2, quiet=True, **SMALL)
    alone = train("shapes.demo", seed=1, quiet=True, **SMALL)
    assert alone.summary.test_accuracy == both.accuracies[1]
    assert (both.path, alone.folder.path) == (Path("runs/shapes.demo"), Path("runs/shapes.demo-2"))


def test_one_seed_has_the_interval_over_images_and_says_so() -> None:
    seeds = train("shapes.demo", seeds=1, quiet=True, out="one", augment=(), **SMALL)
    assert seeds.sd is None and seeds.interval == pytest.approx(wilson_interval(round(60 * seeds.mean), 60))
    # A recipe that never mirrors has one view.
    assert (seeds.mean_tta, seeds.interval_tta) == (seeds.mean, seeds.interval)
    assert "1 seed:" in str(seeds) and "over test images" in str(seeds) and "sd" not in str(seeds)
    assert written(Path("one"))["test_accuracy"]["interval_over"] == "images"


@pytest.mark.parametrize("count", [0, -1, "few", 2.5, True])
def test_no_number_of_seeds_is_refused_and_leaves_nothing(count: Any, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=rf"holds no {SWEEP}"):
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
    words = capsys.readouterr().out
    assert "1 of 3 seeds are finished; the same command with --resume goes on in out" in words
    values = written(Path("out"))
    assert values["finished"] is False and [row["seed"] for row in values["cells"]] == [0]
    assert "test_accuracy" not in values
    first = (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns
    seeds = train("shapes.demo", seeds=3, out="out", resume=True, **SMALL)
    words = capsys.readouterr().out
    assert "for the 2 that are left" in words and "going on after step 6 of 12" in words
    assert (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns == first
    assert (seeds.accuracies, seeds.accuracies_tta) == (whole.accuracies, whole.accuracies_tta)
    assert written(Path("out"))["finished"] is True
    # Once more: nothing is trained, the same is words.
    again = train("shapes.demo", seeds=3, out="out", resume="auto", **SMALL)
    assert "finished already" in capsys.readouterr().out and again.accuracies == whole.accuracies


def test_resume_finds_the_newest_unfinished_seeds_and_leaves_single_runs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", seeds=3, resume=True, **SMALL)
    train("shapes.demo", quiet=True, **SMALL)
    stopped_in(0, monkeypatch, quiet=True)
    assert not written(Path("runs/shapes.demo-2"))["cells"]
    with pytest.raises(InputError, match="nothing to resume"):
        train("shapes.demo", resume=True, **SMALL)
    seeds = train("shapes.demo", seeds=3, resume="auto", quiet=True, **SMALL)
    assert seeds.path == Path("runs/shapes.demo-2") and len(seeds.runs) == 3


def test_more_seeds_can_be_added_but_fewer_or_others_are_refused() -> None:
    two = train("shapes.demo", seeds=2, out="out", quiet=True, **SMALL)
    for settings, message in (
        ({"seeds": 1}, "begun with 2 seeds, not 1"),
        ({"seed": 1}, "begun with seed 0, not 1"),
        ({"peak_lr": 0.2}, "begun with peak_lr 0.1, not 0.2"),
        ({"precision": "bf16"}, "begun with precision fp32, not bf16"),
    ):
        with pytest.raises(InputError, match=message):
            train("shapes.demo", **{**SMALL, "seeds": 2, "out": "out", "resume": True, **settings})
    three = train("shapes.demo", seeds=3, out="out", resume=True, quiet=True, **SMALL)
    assert three.accuracies[:2] == two.accuracies and len(three.accuracies) == 3


def test_a_seed_that_diverges_says_how_far_all_of_them_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(firstlight.Diverged):
        train("shapes.demo", seeds=2, **{**SMALL, "peak_lr": 1e30, "min_lr": 1e29})
    assert "0 of 2 seeds are finished" in capsys.readouterr().out


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunFolder.write

    def full(self: RunFolder, name: str, content: bytes | str) -> None:
        if name == SWEEP and (self.path / "seed-0").exists():
            raise OSError(28, "No space left on device", str(self.path / name))
        write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(RunFailed, match=r"cannot write .*No space left"):
        train("shapes.demo", seeds=2, quiet=True, out="out", **SMALL)
    monkeypatch.setattr(RunFolder, "write", write)
    seeds: Seeds = train("shapes.demo", seeds=2, quiet=True, out="out", resume=True, **SMALL)
    assert len(seeds.runs) == 2


def test_seeds_are_a_sweep_with_one_setting_that_either_verb_goes_on_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {key: value for key, value in SMALL.items() if key not in ("epochs", "device", "precision")}
    place: dict[str, Any] = {key: SMALL[key] for key in ("epochs", "device", "precision")}
    recipe = resolve("shapes.demo", **settings)
    two = train(recipe, seeds=2, out="out", **place)
    words = capsys.readouterr().out
    assert "sweep     out/sweep.json" in words and "page      out/sweep.html" in words
    page = (Path("out") / SWEEP_PAGE).read_text()
    low, high = two.interval
    assert f"Test accuracy {two.mean:.2%}, 95 % interval {low:.2%} to {high:.2%} over 2 seeds" in page
    assert f"over 2 seeds; {two.mean_tta:.2%} with TTA." in page
    assert 'href="seed-1/report.html"' in page and f"{two.accuracies_tta[1]:.2%}"[:-1] in page
    assert "2 runs that differ in nothing but the seed" in page and "chooses" not in page
    first = (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns
    swept = sweep(recipe, {}, seeds=3, out="out", **place)
    assert str(Seeds.of(swept)) in capsys.readouterr().out
    assert [cell.folder for cell in swept.cells] == ["seed-0", "seed-1", "seed-2"]
    assert (Path("out") / "seed-0" / record.MODEL).stat().st_mtime_ns == first
    assert Seeds.of(swept).accuracies[:2] == two.accuracies
    again = train(recipe, seeds=3, out="out", resume=True, quiet=True, **place)
    assert str(again) == str(Seeds.of(swept))


def test_several_processes_of_one_run_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start in (lambda: train("shapes.demo", seeds=2, **SMALL), lambda: sweep("shapes.demo", {}, seeds=2)):
        with pytest.raises(InputError, match="several runs take one process, not 2"):
            start()
    assert not list(tmp_path.iterdir())
