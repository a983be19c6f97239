"""Cross-fitting: no image is judged by a network that saw it, and nothing is half-written."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny import CPU, image_set
from torch import Tensor, nn

from firstlight.cli import main
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError, RunFailed
from firstlight.insight.evaluation import Views, evaluate
from firstlight.insight.suspects import suspects
from firstlight.jobs import suspects as job_suspects
from firstlight.jobs.job import Job
from firstlight.jobs.suspects import fold_numbers, out_of_sample
from firstlight.jobs.suspects import suspects as cross_fit
from firstlight.machine.streams import stream
from firstlight.recipe import Recipe
from firstlight.recipes import named
from firstlight.record import record
from firstlight.record import suspects as kept_suspects
from firstlight.record.record import Record
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.run import Run

HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
QUIET: dict[str, Any] = {**HERE, "quiet": True}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def judges(monkeypatch: pytest.MonkeyPatch, network: Callable[[Job], nn.Module]) -> None:
    """Let cross-fitting take other networks than trained ones."""
    monkeypatch.setattr(job_suspects, "trained", lambda job, quiet: network(job))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alter(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


class ByBrightness(nn.Module):
    """Answers from the picture alone, without having learnt anything."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.float().mean(dim=(1, 2, 3))
        return bright[:, None] * torch.linspace(-3, 3, 4)


def small_recipe() -> Recipe:
    size = {"batch_size": 10, "epochs": 2, "peak_epoch": 1, "width": 2}
    return named("shapes.demo").replace(**size, peak_lr=0.1, min_lr=0.01, augment=())


@pytest.mark.parametrize(("sizes", "folds"), [((7, 1, 12, 4), 4), ((5, 5), 3), ((30, 2, 2), 5), ((3,), 2)])
def test_folds_hold_as_many_of_every_class(sizes: tuple[int, ...], folds: int) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    fold = fold_numbers(labels, folds, seed=3)
    for members in [torch.ones(len(labels), dtype=torch.bool), *(labels == n for n in range(len(sizes)))]:
        held = [int(((fold == number) & members).sum()) for number in range(folds)]
        assert sum(held) == int(members.sum()) and max(held) - min(held) <= 1
    assert torch.equal(fold, fold_numbers(labels, folds, seed=3))
    assert len(labels) < 20 or not torch.equal(fold, fold_numbers(labels, folds, seed=4))


def test_each_image_is_judged_once_by_a_network_trained_on_all_other_folds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, recipe, jobs = image_set(42), small_recipe(), []
    judges(monkeypatch, lambda job: jobs.append(job) or ByBrightness())
    rows = out_of_sample(recipe, images, CPU, folds=4, quiet=True)
    assert sorted(name for job in jobs for name in job.test.names) == sorted(images.names), "each once"
    for job in jobs:
        assert set(job.train.names) == set(images.names) - set(job.test.names)
        assert (job.recipe, job.validation) == (recipe, None)
    # The rows are in the order of the images.
    assert torch.allclose(rows, evaluate(ByBrightness(), images, CPU).probabilities)


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_a_network_learns_by_its_recipe_and_averaged_weights_judge(average_decay: float) -> None:
    images, recipe = image_set(80, size=32), small_recipe().replace(epochs=6, average_decay=average_decay)
    job = Job.with_images(images, images, recipe, CPU)
    before = evaluate(job.model, images, CPU).loss
    judge = job_suspects.trained(job, quiet=True)
    assert evaluate(judge, images, CPU).loss < 0.8 * before
    last, mean = (evaluate(model, images, CPU).probabilities for model in (job.model, judge))
    assert torch.allclose(last, mean) is (average_decay == 0)


def test_a_recipe_that_mirrors_has_mirror_images_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class ByLeftHalf(ByBrightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[..., : images.shape[3] // 2])

    judges(monkeypatch, lambda job: ByLeftHalf())
    images, recipe = image_set(24), small_recipe().replace(batch_size=5)
    mirroring = recipe.replace(augment=(named("shapes.demo").augment[1],))
    for chosen, tta in ((recipe, False), (mirroring, True)):
        expected = evaluate(ByLeftHalf(), images, CPU, views=Views(mirror=tta)).probabilities
        assert torch.allclose(out_of_sample(chosen, images, CPU, quiet=True), expected)


def test_suspects_of_a_run_are_kept_in_its_folder(run: Path) -> None:
    before = files(run)
    result = cross_fit(run, folds=3, **QUIET)
    after = files(run)
    assert set(after) - set(before) == {kept_suspects.SUSPECTS, kept_suspects.SUSPECTS_TABLE}
    assert {name: after[name] for name in before} == before, "nothing else changes"

    images, _ = Shapes(train=130, test=20).load()
    kept = Run.open(run).suspects
    assert kept is not None and kept.count == result.count
    assert torch.equal(kept.labels, images.labels), "images held out for validation are judged too"
    assert kept.probabilities.shape == (130, 10) and len(kept.indices) == kept_suspects.KEPT_SUSPECTS
    assert torch.allclose(kept.probabilities.sum(1), torch.ones(130), atol=5e-3)
    assert torch.equal(kept.probabilities, kept.probabilities.half().float())
    assert torch.equal(kept.images, images.images[kept.indices])
    order = suspects(images.labels, kept.probabilities).order
    assert set(kept.indices[:20].tolist()) <= set(order[:40].tolist()), "but for rounding"
    for name in ("labels", "probabilities", "indices", "scores", "suggested", "images"):
        assert torch.equal(getattr(result, name), getattr(kept, name)), name
    assert result.names == [images.names[index] for index in kept.indices.tolist()]

    rows = list(csv.DictReader((run / kept_suspects.SUSPECTS_TABLE).read_text().splitlines()))
    assert len(rows) == kept.count
    for row, index, score, suggested in zip(rows, kept.indices, kept.scores, kept.suggested, strict=False):
        assert (int(row["index"]), row["name"]) == (int(index), images.names[int(index)])
        assert row["label"] == images.classes[int(images.labels[index])]
        assert row["looks like"] == images.classes[int(suggested)]
        assert float(row["score"]) == pytest.approx(float(score), abs=1e-5)


def test_the_recipe_is_trained_with_the_rates_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Run.open(run)
    free = {"peak_lr": None, "min_lr": None}
    alter(run / RECIPE, lambda values: values["recipe"].update(best_on_validation=True))
    alter(run / RECIPE, lambda values: values["recipe"]["schedule"].update(free))
    jobs: list[Job] = []
    judges(monkeypatch, lambda job: jobs.append(job) or job.model)
    cross_fit(run, **QUIET)
    rates = [(job.recipe.schedule.peak_lr, job.recipe.schedule.min_lr) for job in jobs]
    assert rates == [(opened.summary.peak_lr, opened.summary.min_lr)] * 4
    # None is held out but the fold.
    assert {(job.validation, len(job.train) + len(job.test)) for job in jobs} == {(None, 130)}


def test_it_says_the_cost_first_and_leaves_the_folder_as_it_was_where_it_is_stopped(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, outputs = files(run), []

    def interrupted(job: Job) -> nn.Module:
        outputs.append(capsys.readouterr().out)
        if len(outputs) == 3:
            raise KeyboardInterrupt
        return job.model

    judges(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cross_fit(run, **HERE)
    assert "130 labels to judge; 4 networks" in outputs[0] and "fold 1/4" in outputs[1]
    assert outputs[0].splitlines()[-1].startswith("about") and " s here (training " in outputs[0]
    assert files(run) == before


@pytest.mark.parametrize("fails", [kept_suspects.SUSPECTS, kept_suspects.SUSPECTS_TABLE])
def test_a_full_disk_leaves_neither_file(run: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    before, write = files(run), RunFolder.write
    judges(monkeypatch, lambda job: job.model)

    def full(self: RunFolder, name: str, content: bytes | str) -> None:
        if name == fails:
            raise OSError(28, "No space left on device", name)
        write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(RunFailed, match="No space left") as raised:
        cross_fit(run, **QUIET)
    assert "try again" in raised.value.hint and "--resume" not in raised.value.hint
    assert files(run) == before


def test_exhausted_memory_names_a_batch_that_fits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_suspects, "trained", Mock(side_effect=MemoryError))
    before = files(run)
    with pytest.raises(RunFailed, match="out of memory with batches of 20") as raised:
        cross_fit(run, **QUIET)
    assert raised.value.hint == "Train the run again with --set batch_size=10, which fits here."
    assert files(run) == before


def test_what_cannot_be_cross_fitted_is_bad_input(run: Path, tmp_path: Path) -> None:
    for folds in (1, 131):
        with pytest.raises(InputError, match=f"cannot make {folds} folds"):
            cross_fit(run, folds=folds, **QUIET)
    large = Run.open(run).recipe.replace(batch_size=100)
    with pytest.raises(InputError, match="4 folds leave 97 images to train on, fewer than a batch of 100"):
        out_of_sample(large, Shapes(train=130, test=20).load()[0], CPU, quiet=True)
    alter(run / record.ENVIRONMENT, lambda values: values["data"].update(train_sha256="0" * 64))
    with pytest.raises(InputError, match="training images are not those of"):
        cross_fit(run, **QUIET)
    alter(run / record.SUMMARY, lambda values: values.update(test_accuracy=None))
    with pytest.raises(InputError, match="is not finished"):
        cross_fit(run, **QUIET)
    with pytest.raises(InputError, match="there is no run folder"):
        cross_fit(tmp_path / "nowhere", **QUIET)
    assert not (run / kept_suspects.SUSPECTS).exists()


def test_damaged_suspects_are_named_missing_ones_are_none_and_names_come_from_the_table(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges(monkeypatch, lambda job: job.model)
    folder = RunFolder.open(run)
    assert Record(folder).suspects is None
    cross_fit(run, **QUIET)
    first, second = Record(folder).suspects.indices[:2].tolist()  # type: ignore[union-attr]
    table = f"index,name\n{first},<b>\nx,y\n-1,z\n{'9' * 9999},w\n{second}\n"
    folder.write(kept_suspects.SUSPECTS_TABLE, table)
    kept = Record(folder).suspects
    assert kept is not None and kept.names[:2] == ["<b>", f"train/{second:05}"]
    folder.write(kept_suspects.SUSPECTS_TABLE, "index,name\n1," + "a" * 200_000)
    with pytest.raises(InputError, match="table is damaged"):
        _ = Record(folder).suspects
    (run / kept_suspects.SUSPECTS_TABLE).unlink()
    whole = folder.read_tensors(kept_suspects.SUSPECTS)
    damaged = {
        "labels": (whole["labels"][:-1], whole["labels"] + 9),
        "probabilities": (whole["probabilities"][:, :-1],),
        "indices": (whole["indices"] + 100,),
        "suggested": (whole["suggested"] - 9,),
        "images": (whole["images"][:-1], whole["images"].float()),
        "count": (torch.tensor(131), torch.tensor([1, 2])),
        "interval": (torch.tensor([0, 131]), torch.tensor(3), torch.tensor([-1, 5])),
    }
    for name, value in ((name, value) for name, values in damaged.items() for value in values):
        folder.write_tensors(kept_suspects.SUSPECTS, {**whole, name: value})
        with pytest.raises(InputError, match=kept_suspects.SUSPECTS):
            _ = Record(folder).suspects
    assert kept.interval == tuple(whole["interval"].tolist())
    older = {key: whole[key] for key in whole if key not in ("names", "interval")}
    folder.write_tensors(kept_suspects.SUSPECTS, older)
    old = Record(folder).suspects
    assert old is not None and old.names[1] == f"#{second}" and old.interval is None
    for name in older:
        folder.write_tensors(kept_suspects.SUSPECTS, {key: whole[key] for key in whole if key != name})
        with pytest.raises(InputError, match=name):
            _ = Record(folder).suspects


@pytest.mark.parametrize("wrong", [(77, 7), ()])
def test_the_shell_says_how_many_and_which(
    wrong: tuple[int, ...], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = Shapes(train=130, test=20).load()
    true = images.labels.clone()
    true[list(wrong)] = (true[list(wrong)] + 1) % 10

    def know(*_: object, **__: object) -> Tensor:
        """Answer as networks would that know these labels to be wrong, the first the surest."""
        confidence = 1 - 10 ** (-1 - 3 * torch.rand(130, 1, generator=stream(0, "confidence")))
        confidence[list(wrong)] = torch.tensor([[0.9999], [0.999]])[: len(wrong)]
        return ((1 - confidence) / 9).repeat(1, 10).scatter(1, true[:, None], confidence)

    monkeypatch.setattr(job_suspects, "out_of_sample", know)
    with pytest.raises(SystemExit) as end:
        main(["suspects", str(run), "--folds", "3", "--device", "cpu", "--precision", "fp32"])
    output = capsys.readouterr().out
    assert end.value.code == 0 and "3 networks" in output
    assert str(run / kept_suspects.SUSPECTS_TABLE) in output
    said = "about 2 of 130 labels may be wrong" if wrong else "none of 130 labels looks wrong"
    assert re.search(rf"{said} \(95 % interval \d+ to \d+\)", output)
    names = images.classes
    assert [line.strip() for line in output.splitlines() if "labelled" in line] == [
        f"{index}  train/{index:05d}  labelled {names[images.labels[index]]}, looks like {names[true[index]]}"
        for index in wrong
    ]
    table = (run / kept_suspects.SUSPECTS_TABLE).read_text().splitlines()
    assert [int(row.split(",")[0]) for row in table[1:]] == list(wrong)
