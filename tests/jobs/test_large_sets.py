"""A set that exceeds memory trains in an order of its own, which it says, keeps, and goes on in."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stopped import outcome, quick_report
from test_ranks import finish

from firstlight.data.stored import StoredImages
from firstlight.jobs.train import train
from firstlight.record import record
from firstlight.record.checkpoints import Checkpoints
from firstlight.run import Run

LITTLE = "4M"
"""Half of it holds fewer than the 900 training images of 3 KB."""
SETTINGS: dict[str, Any] = {
    **{"widths": (8, 8, 8), "batch_size": 100, "epochs": 3, "peak_lr": 0.05, "min_lr": 0.001},
    **{"device": "cpu", "precision": "fp32", "validation": 40, "best_on_validation": True},
    **{"checkpoint_minutes": 0.0, "average_decay": 0.9, "quiet": True},
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "report", quick_report)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for part, count in (("train", 300), ("test", 20)):
        for label in range(3):
            (root / part / f"class {label}").mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(label * 60, label * 60 + 100, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / f"class {label}" / f"{number}.bmp")
    return root


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with little memory that was left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "report", quick_report)
        patch.setenv("FIRSTLIGHT_MEMORY", LITTLE)
        return go(photos, tmp_path_factory.mktemp("whole") / "run").path


def go(photos: Path, out: Path, **settings: Any) -> Run:
    return train("folder.scratch", **{**SETTINGS, "data_dir": photos, "out": out, **settings})


def environment(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / record.ENVIRONMENT).read_text()))


def test_it_is_said_and_kept_and_only_where_the_set_exceeds_memory(
    photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = go(photos, tmp_path / "held", quiet=False)
    assert "blocks" not in capsys.readouterr().out and "window_images" not in environment(held.path)
    assert environment(whole)["window_images"] == 85 and environment(whole)["block_images"] == 1
    assert outcome(whole)["history"] != outcome(held.path)["history"]
    assert min(run.summary.test_accuracy or 0 for run in (Run.open(whole), held)) > 0.9
    for key in ("data", "recipe"):
        assert environment(whole).get(key) == environment(held.path).get(key)


def test_the_whole_run_reads_the_set_piece_by_piece(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_MEMORY", LITTLE)
    most, read = 0, StoredImages.read

    def measured(images: StoredImages, index: Any, target: Any = None) -> Any:
        nonlocal most
        if not isinstance(index, slice):  # a slice is a batch to score, or part of a sum
            most = max(most, len(index))
        return read(images, index, target)

    monkeypatch.setattr(StoredImages, "read", measured)
    go(photos, tmp_path / "run", quiet=False, epochs=1)
    words = capsys.readouterr().out
    assert "shuffled in blocks of 1 neighbours, then within windows of 85 images" in words
    assert most == 85


@pytest.mark.parametrize("memory", [LITTLE, None])
def test_stopped_it_goes_on_to_the_same_bits_also_where_there_is_more_memory(
    memory: str | None, photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.save

    def save_and_interrupt(self: Checkpoints, *values: Any) -> None:
        save(self, *values)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setenv("FIRSTLIGHT_MEMORY", LITTLE)
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            go(photos, tmp_path / "run")
    if memory is not None:
        monkeypatch.setenv("FIRSTLIGHT_MEMORY", memory)
    go(photos, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(whole)


def with_ranks(photos: str, out: str) -> None:
    os.environ["FIRSTLIGHT_MEMORY"] = LITTLE
    Run.report = quick_report  # type: ignore[method-assign, assignment]
    go(Path(photos), Path(out))


def test_ranks_train_in_the_order_of_one_process(photos: Path, whole: Path, tmp_path: Path) -> None:
    finish(2, tmp_path / "log", with_ranks, str(photos), str(tmp_path / "run"))
    assert environment(tmp_path / "run")["window_images"] == 85
    several, one = (outcome(path)["history"][0] for path in (tmp_path / "run", whole))
    # Batches equal to the bit: tests/data/test_windows.py. Sums in another order part the losses in time.
    assert several["train_loss"] == pytest.approx(one["train_loss"], rel=0.02)
