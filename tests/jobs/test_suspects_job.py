"""Cross-fitting: no image is judged by a network that saw it, and nothing is half-written."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import CPU, image_set
from torch import Tensor, nn

from firstlight.cli import main
from firstlight.data.images import ImageSet
from firstlight.data.shapes import Shapes
from firstlight.errors import InputError, RunFailed
from firstlight.insight.evaluation import Views, evaluate
from firstlight.insight.suspects import suspects
from firstlight.jobs import suspects as job_suspects
from firstlight.jobs.job import Job
from firstlight.jobs.suspects import fold_numbers, out_of_sample
from firstlight.jobs.suspects import suspects as cross_fit
from firstlight.jobs.train import train
from firstlight.machine.streams import stream
from firstlight.recipe import Recipe
from firstlight.recipes import named
from firstlight.record import record
from firstlight.record import suspects as kept_suspects
from firstlight.record.record import Record
from firstlight.record.run_folder import RECIPE, RunFolder
from firstlight.run import Run

SMALL = {
    "train": 130,
    "test": 20,
    "width": 2,
    "batch_size": 20,
    "peak_lr": 0.1,
    "min_lr": 0.001,
    "validation": 10,
}
HERE = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, with validation images; to be copied, not changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train("shapes.demo", out=out, epochs=1, quiet=True, **HERE, **SMALL)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class ByBrightness(nn.Module):
    """Answers from the picture alone, without having learnt anything."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.float().mean(dim=(1, 2, 3))
        return bright[:, None] * torch.linspace(-3, 3, 4)


def small_recipe() -> Recipe:
    return named("shapes.demo").replace(
        batch_size=10, epochs=2, peak_epoch=1, peak_lr=0.1, min_lr=0.01, width=2, augment=()
    )


@pytest.mark.parametrize(("sizes", "folds"), [((7, 1, 12, 4), 4), ((5, 5), 3), ((30, 2, 2), 5), ((3,), 2)])
def test_folds_hold_as_many_of_every_class(sizes: tuple[int, ...], folds: int) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    fold = fold_numbers(labels, folds, seed=3)
    for members in [torch.ones(len(labels), dtype=torch.bool), *(labels == n for n in range(len(sizes)))]:
        held = [int(((fold == number) & members).sum()) for number in range(folds)]
        assert sum(held) == int(members.sum()) and max(held) - min(held) <= 1


def test_folds_are_drawn_from_the_seed() -> None:
    labels = torch.arange(100) % 5
    assert torch.equal(fold_numbers(labels, 4, 0), fold_numbers(labels, 4, 0))
    assert not torch.equal(fold_numbers(labels, 4, 0), fold_numbers(labels, 4, 1))


def test_each_image_is_judged_once_by_a_network_trained_on_all_other_folds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, recipe, jobs = image_set(42), small_recipe(), []

    def remembered(job: Job, quiet: bool) -> nn.Module:
        jobs.append(job)
        return ByBrightness()

    monkeypatch.setattr(job_suspects, "_trained", remembered)
    rows = out_of_sample(recipe, images, CPU, folds=4, quiet=True)
    judged = [name for job in jobs for name in job.test.names]
    assert sorted(judged) == sorted(images.names), "each exactly once"
    for job in jobs:
        assert set(job.train.names) == set(images.names) - set(job.test.names)
        assert (job.recipe, job.validation) == (recipe, None)
    # The rows are in the order of the images.
    assert torch.allclose(rows, evaluate(ByBrightness(), images, CPU).probabilities)


def test_a_network_is_trained_by_its_recipe_and_learns() -> None:
    images, recipe = image_set(80, size=32), small_recipe().replace(epochs=6)
    job = Job.with_images(images, images, recipe, CPU)
    before = evaluate(job.model, images, CPU).loss
    trained = job_suspects._trained(job, quiet=True)
    assert evaluate(trained, images, CPU).loss < 0.8 * before


def test_averaged_weights_are_the_ones_that_judge() -> None:
    images, recipe = image_set(40, size=32), small_recipe().replace(average_decay=0.9)
    job = Job.with_images(images, images, recipe, CPU)
    judge = job_suspects._trained(job, quiet=True)
    assert judge is not job.model
    last, mean = (evaluate(model, images, CPU).probabilities for model in (job.model, judge))
    assert not torch.allclose(last, mean)


def test_a_recipe_that_mirrors_has_mirror_images_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class ByLeftHalf(ByBrightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[..., : images.shape[3] // 2])

    monkeypatch.setattr(job_suspects, "_trained", lambda job, quiet: ByLeftHalf())
    images, recipe = image_set(24), small_recipe().replace(batch_size=5)
    mirroring = recipe.replace(augment=(named("shapes.demo").augment[1],))
    for chosen, tta in ((recipe, False), (mirroring, True)):
        expected = evaluate(ByLeftHalf(), images, CPU, views=Views(mirror=tta)).probabilities
        assert torch.allclose(out_of_sample(chosen, images, CPU, quiet=True), expected)


def test_suspects_of_a_run_are_kept_in_its_folder(run: Path) -> None:
    before = files(run)
    found = cross_fit(run, folds=3, quiet=True, **HERE)
    after = files(run)
    assert set(after) - set(before) == {kept_suspects.SUSPECTS, kept_suspects.SUSPECTS_TABLE}
    assert {name: after[name] for name in before} == before, "nothing else changes"

    images, _ = Shapes(train=130, test=20).load()
    opened = Run.open(run)
    kept = opened.suspects
    assert kept is not None
    assert torch.equal(kept.labels, images.labels), "images held out for validation are judged too"
    assert kept.probabilities.shape == (130, 10) and len(kept.indices) == kept_suspects.KEPT_SUSPECTS
    assert torch.allclose(kept.probabilities.sum(1), torch.ones(130), atol=5e-3)
    assert opened.folder.read_tensors(kept_suspects.SUSPECTS)["probabilities"].dtype == torch.float16
    assert torch.equal(kept.images, images.images[kept.indices])
    expected = suspects(images.labels, kept.probabilities)
    assert set(kept.indices[:20].tolist()) <= set(expected.order[:40].tolist()), "but for rounding"
    for name in ("labels", "probabilities", "indices", "scores", "suggested", "images"):
        assert torch.equal(getattr(found, name), getattr(kept, name)), name
    assert found.count == kept.count and found.names == [images.names[i] for i in kept.indices.tolist()]

    rows = list(csv.DictReader((run / kept_suspects.SUSPECTS_TABLE).read_text().splitlines()))
    assert len(rows) == kept.count
    for row, index, score, suggested in zip(rows, kept.indices, kept.scores, kept.suggested, strict=False):
        assert (int(row["index"]), row["name"]) == (int(index), images.names[int(index)])
        assert row["label"] == images.classes[int(images.labels[index])]
        assert row["looks like"] == images.classes[int(suggested)]
        assert float(row["score"]) == pytest.approx(float(score), abs=1e-5)


def test_the_recipe_is_trained_with_the_rates_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Run.open(run)
    values = json.loads((run / RECIPE).read_text())
    values["recipe"]["best_on_validation"] = True
    values["recipe"]["schedule"] |= {"peak_lr": None, "min_lr": None}
    (run / RECIPE).write_text(json.dumps(values))
    schedules = []

    def remembered(job: Job, quiet: bool) -> nn.Module:
        schedules.append(job.schedule())
        assert job.validation is None and len(job.train) + len(job.test) == 130, (
            "none is held out but the fold"
        )
        return job.model

    monkeypatch.setattr(job_suspects, "_trained", remembered)
    cross_fit(run, quiet=True, **HERE)
    summary = opened.summary
    assert [(s.peak_lr, s.min_lr) for s in schedules] == [(summary.peak_lr, summary.min_lr)] * 4


def test_the_cost_is_said_before_the_first_network_is_trained(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def stopped(job: Job, quiet: bool) -> nn.Module:
        said.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(job_suspects, "_trained", stopped)
    with pytest.raises(KeyboardInterrupt):
        cross_fit(run, **HERE)
    assert "130 labels to judge; 4 networks" in said[0]
    assert "about" in said[0].splitlines()[-1] and " s here (training " in said[0].splitlines()[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_stopped_or_failed_it_leaves_the_folder_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before, calls = files(run), iter(range(9))

    def stopped(job: Job, quiet: bool) -> nn.Module:
        if next(calls) == 2:
            raise error
        return job.model

    monkeypatch.setattr(job_suspects, "_trained", stopped)
    with pytest.raises(error):
        cross_fit(run, quiet=True, **HERE)
    assert files(run) == before


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let cross-fitting take networks as they are built, which is quicker."""
    monkeypatch.setattr(job_suspects, "_trained", lambda job, quiet: job.model)
    return


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("fails", [kept_suspects.SUSPECTS, kept_suspects.SUSPECTS_TABLE])
def test_a_full_disk_leaves_neither_file(run: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    before, write = files(run), RunFolder.write

    def full(self: RunFolder, name: str, content: bytes | str) -> None:
        if name == fails:
            raise OSError(28, "No space left on device", name)
        write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(RunFailed, match="No space left") as raised:
        cross_fit(run, quiet=True, **HERE)
    assert "try again" in raised.value.hint and "--resume" not in raised.value.hint
    assert files(run) == before


def test_exhausted_memory_names_a_batch_that_fits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(job: Job, quiet: bool) -> nn.Module:
        raise MemoryError

    monkeypatch.setattr(job_suspects, "_trained", starved)
    before = files(run)
    with pytest.raises(RunFailed, match="out of memory with batches of 20") as raised:
        cross_fit(run, quiet=True, **HERE)
    assert raised.value.hint == "Train the run again with --set batch_size=10, which fits here."
    assert files(run) == before


@pytest.mark.usefixtures("untrained")
def test_what_cannot_be_cross_fitted_is_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot make 1 folds"):
        cross_fit(run, folds=1, **HERE)
    with pytest.raises(InputError, match="cannot make 131 folds"):
        cross_fit(run, folds=131, **HERE)
    opened = Run.open(run)
    large = opened.recipe.replace(batch_size=100)
    with pytest.raises(InputError, match="4 folds leave 97 images to train on, fewer than a batch of 100"):
        out_of_sample(large, Shapes(train=130, test=20).load()[0], CPU, quiet=True)
    environment = json.loads((run / record.ENVIRONMENT).read_text())
    environment["data"]["train_sha256"] = "0" * 64
    (run / record.ENVIRONMENT).write_text(json.dumps(environment))
    with pytest.raises(InputError, match="training images are not those of"):
        cross_fit(run, quiet=True, **HERE)
    summary = json.loads((run / record.SUMMARY).read_text())
    (run / record.SUMMARY).write_text(json.dumps(summary | {"test_accuracy": None}))
    with pytest.raises(InputError, match="is not finished"):
        cross_fit(run, quiet=True, **HERE)
    with pytest.raises(InputError, match="there is no run folder"):
        cross_fit(tmp_path / "nowhere", **HERE)
    assert not (run / kept_suspects.SUSPECTS).exists()


@pytest.mark.usefixtures("untrained")
def test_damaged_suspects_are_named_and_missing_ones_are_none(run: Path) -> None:
    folder = RunFolder.open(run)
    assert Record(folder).suspects is None
    cross_fit(run, quiet=True, **HERE)
    whole = folder.read_tensors(kept_suspects.SUSPECTS)
    for name, value in (
        ("labels", whole["labels"][:-1]),
        ("labels", whole["labels"] + 9),
        ("probabilities", whole["probabilities"][:, :-1]),
        ("indices", whole["indices"] + 100),
        ("suggested", whole["suggested"] - 9),
        ("images", whole["images"][:-1]),
        ("images", whole["images"].float()),
        ("count", torch.tensor(131)),
        ("count", torch.tensor([1, 2])),
    ):
        folder.write_tensors(kept_suspects.SUSPECTS, {**whole, name: value})
        with pytest.raises(InputError, match=kept_suspects.SUSPECTS):
            _ = Record(folder).suspects
    for name in whole:
        folder.write_tensors(kept_suspects.SUSPECTS, {key: whole[key] for key in whole if key != name})
        with pytest.raises(InputError, match=name):
            _ = Record(folder).suspects


@pytest.mark.usefixtures("untrained")
def test_names_come_from_the_table_where_it_has_them(run: Path) -> None:
    cross_fit(run, quiet=True, **HERE)
    folder = RunFolder.open(run)
    first, second = Record(folder).suspects.indices[:2].tolist()  # type: ignore[union-attr]
    folder.write(
        kept_suspects.SUSPECTS_TABLE, f"index,name\n{first},<b>\nx,y\n-1,z\n{'9' * 9999},w\n{second}\n"
    )
    kept = Record(folder).suspects
    assert kept is not None and kept.names[:2] == ["<b>", f"#{second}"]
    folder.write(kept_suspects.SUSPECTS_TABLE, "index,name\n1," + "a" * 200_000)
    with pytest.raises(InputError, match="table is damaged"):
        _ = Record(folder).suspects


def in_shell(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["suspects", str(run), "--folds", "3", "--device", "cpu", "--precision", "fp32"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def test_the_shell_says_how_many_and_which(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = Shapes(train=130, test=20).load()

    def knowing(recipe: Recipe, images: ImageSet, *_: object, **__: object) -> Tensor:
        """Networks that know two labels to be wrong."""
        true = images.labels.clone()
        true[[7, 77]] = (true[[7, 77]] + 1) % 10
        sure = 1 - 10 ** (-1 - 3 * torch.rand(len(true), 1, generator=stream(0, "sure")))
        sure[[7, 77], 0] = torch.tensor([0.999, 0.9999])
        return ((1 - sure) / 9).repeat(1, 10).scatter(1, true[:, None], sure)

    monkeypatch.setattr(job_suspects, "out_of_sample", knowing)
    said = in_shell(run, capsys)
    classes, labels = images.classes, images.labels
    rows = [
        f"    {index}  train/{index:05d}  labelled {classes[int(labels[index])]}, "
        f"looks like {classes[(int(labels[index]) + 1) % 10]}"
        for index in (77, 7)
    ]
    assert "3 networks" in said and "about 2 of 130 labels look wrong" in said
    assert [line.strip() for line in said.splitlines() if "labelled" in line] == [row.strip() for row in rows]
    assert str(run / kept_suspects.SUSPECTS_TABLE) in said
    table = (run / kept_suspects.SUSPECTS_TABLE).read_text().splitlines()
    assert len(table) == 3 and table[1].startswith("77,train/00077,")


@pytest.mark.usefixtures("untrained")
def test_the_shell_says_so_where_no_label_looks_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = in_shell(run, capsys)
    assert "fold 3/3" in said and "none of 130 labels looks wrong" in said and "labelled" not in said
