"""`train` where the last layer is fitted to the features of a frozen network: no epochs, no rates."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from firstlight.data.augment import normalise
from firstlight.data.cache import ArrayCache, digest
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import evaluate
from firstlight.insight.suspects import suspects
from firstlight.jobs.job import Job
from firstlight.jobs.judge import keep_whole
from firstlight.machine.clock import duration
from firstlight.machine.machine import Machine
from firstlight.machine.storage import cache_folder
from firstlight.machine.streams import seeded
from firstlight.models.network import count_parameters, for_inference, images_at_once
from firstlight.record.head import write_head
from firstlight.record.record import FIGURES, REPORT, Record
from firstlight.record.summary import Summary
from firstlight.record.suspects import TrainingSuspects
from firstlight.run import Run
from firstlight.training.head import HeadFit, LogisticHead, advice, views
from firstlight.training.tuning import Rehearsal, applies, shown, tune

_VIEWS = 6
_MOST_WITH_CORNERS = 5000
"""Images above which only the image and its mirror image are learned from."""


class Transferable(Protocol):
    """A network with a frozen body, whose last blocks can be tuned, and a linear layer on its features."""

    linear: nn.Linear

    def grid_of_view(self, images: Tensor) -> Tensor: ...

    def features_of_grid(self, grid: Tensor) -> Tensor: ...

    def last_blocks(self) -> nn.Module: ...

    def take_last_blocks(self, blocks: nn.Module) -> None: ...

    def folded(self, dtype: torch.dtype = torch.float32) -> Transferable: ...


def train_head(job: Job, run: Run, start: float, log: Callable[[str], None], quiet: bool) -> Run:
    """Fit the head of a job's recipe, judge it and draw its page; `start` is the clock at the prompt."""
    fit_run(job, run, start, log, quiet)
    run.report()  # shows the seconds until now; drawing is waited for too, so they are written again
    run.write_summary(dataclasses.replace(run.summary, wall_seconds=time.perf_counter() - start))
    for line in results(run, len(job.test)):
        log(line)
    log(f"pictures  {run.path / FIGURES}\nreport    {run.path / REPORT}")
    return run


def fit_run(job: Job, record: Record, start: float, log: Callable[[str], None], quiet: bool) -> None:
    """Fit the head of a job's recipe, and write all results of the run but its page."""
    recipe, model, machine = job.recipe, _transferable(job.model), job.machine
    assert recipe.head is not None
    fast, images = model.folded(machine.dtype), job.train
    labels, classes = images.labels, len(images.classes)
    for line in _describe(job, fast):
        log(line)
    begun = time.perf_counter()
    tunes = applies(recipe.head, len(images))
    features, grids = _kept_features(fast, images, machine, tunes, quiet)
    fit = recipe.head(features, labels, classes, recipe.seed)
    for line in _said(fit, recipe.head):
        log(line)
    weight, bias, blocks, rehearsal = fit.weight, fit.bias, None, None
    if tunes:
        tuned = tune(
            recipe.head, model.last_blocks, grids, features, labels, classes, fit, recipe.seed, quiet=quiet
        )
        rehearsal = tuned.rehearsal
        log(rehearsal.words)
        if rehearsal.better:
            weight, bias, blocks = tuned.weight, tuned.bias, tuned.blocks
    seconds = time.perf_counter() - begun
    if not fit.mirror or blocks is not None:
        job = _unmirrored(job)
        model = _transferable(job.model)
    record.begin(job.recipe, None, job.environment(), job.samples())
    with torch.no_grad():
        model.linear.weight.copy_(weight)
        model.linear.bias.copy_(bias)
    if blocks is not None:
        model.take_last_blocks(blocks)
    record.write_model(job.model)
    write_head(record.folder, fit, rehearsal)
    TrainingSuspects.write(record.folder, suspects(labels, fit.probabilities), fit.probabilities, images)
    record.write_summary(_judged(job, fit, rehearsal, record, seconds, start))


def _judged(
    job: Job, fit: HeadFit, rehearsal: Rehearsal | None, record: Record, seconds: float, start: float
) -> Summary:
    """Score the test set in fp32, as `predict` does, and return the numbers of the run."""
    machine = dataclasses.replace(job.machine, precision="fp32")
    plain = evaluate(machine.place(for_inference(job.model)), job.test, machine)
    record.write_evaluation(plain, plain, job.test)
    keep_whole(job, plain, record)
    held_out = rehearsal.after if rehearsal is not None and rehearsal.better else fit.accuracies[fit.strength]
    return Summary(
        recipe=job.recipe.name,
        seed=job.recipe.seed,
        epochs=0,
        interrupted=False,
        test_accuracy=plain.accuracy,
        test_accuracy_tta=plain.accuracy,
        test_interval_95=plain.interval,
        test_loss=plain.loss,
        validation_accuracy=held_out,
        train_seconds=seconds,
        tta_seconds=0.0,
        wall_seconds=time.perf_counter() - start,
        parameters=count_parameters(job.model),
        device=job.machine.device.type,
        hardware=job.machine.hardware,
        threads=job.machine.threads,
        precision=job.machine.precision,
        torch=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _unmirrored(job: Job) -> Job:
    """Return the job with a network that looks at no mirror image, with the same weights."""
    recipe = job.recipe.replace(mirrored=False)
    with seeded(recipe.seed, "weights"):
        model = recipe.model(len(job.train.classes), job.train.shape[0])
    model.load_state_dict(job.model.state_dict())
    return dataclasses.replace(job, recipe=recipe, model=job.machine.place(model))


def _transferable(model: Any) -> Transferable:
    """Return a network as what it must be; raises InputError where it has no features to fit a head to."""
    if not all(
        hasattr(model, name) for name in ("grid_of_view", "features_of_grid", "last_blocks", "linear")
    ):
        raise InputError(
            f"{type(model).__name__} has no frozen features to fit a linear layer to",
            "Set model=efficientnetlite, or train it with the recipe folder.scratch.",
        )
    return model  # type: ignore[no-any-return]


def _views(images: ImageSet) -> int:
    return _VIEWS if len(images) <= _MOST_WITH_CORNERS else 2


def _kept_features(
    network: Transferable, images: ImageSet, machine: Machine, tunes: bool, quiet: bool
) -> tuple[Tensor, Tensor]:
    """Return features, fp32, V×N×D, and the grids below them, from the cache where they were computed before.

    tunes: whether grids are needed; else there are none, and nothing of them is kept.
    """
    sha = hashlib.sha256(f"features 2 {_views(images)} {machine.precision} {torch.__version__}".encode())
    sha.update(f"{images.digest} {images.mean} {images.std} {getattr(network, 'spec', '')}".encode())
    assert isinstance(network, nn.Module)
    for name, tensor in network.state_dict().items():
        if not name.startswith("linear."):
            sha.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    names = ("features", "grids") if tunes else ("features",)
    folder = cache_folder() / "features" / f"{sha.hexdigest()[:24]}-{names[-1]}"
    sums = folder / "sha256.txt"
    try:
        arrays = ArrayCache(folder, names, sums.read_text().strip()).load()
    except (OSError, UnicodeDecodeError):
        arrays = None
    if arrays is None:
        rows = features_of(network, images, machine, grids=tunes, quiet=quiet)
        arrays = {name: each.numpy() for name, each in zip(names, rows, strict=True)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ArrayCache(folder, names, digest(arrays)).save(arrays)
            sums.write_text(digest(arrays))
        except OSError:  # without a cache they are computed again next time
            pass
    features = torch.from_numpy(arrays["features"]).to(machine.device)
    return features, torch.from_numpy(arrays["grids"]) if tunes else features[:0]


@torch.inference_mode()
def features_of(
    network: Transferable, images: ImageSet, machine: Machine, *, grids: bool = False, quiet: bool = False
) -> tuple[Tensor, ...]:
    """Return the features of every view of every image, fp32, V×N×D, on the CPU.

    grids: whether what the network's last blocks read is returned beside them: fp16, V×N×C×H×W.
    """
    count = _views(images)
    parts: list[tuple[Tensor, ...]] = []
    with tqdm(
        total=count * len(images),
        desc="features",
        unit=" images",
        delay=1,
        leave=False,
        disable=True if quiet else None,
    ) as bar:
        for pixels in images.images.split(images_at_once(images.images.shape)):
            batch = normalise(pixels.to(machine.device), images.mean, images.std)
            rows = []
            for view in views(batch)[:count]:
                grid = network.grid_of_view(view.contiguous(memory_format=torch.channels_last))
                features = network.features_of_grid(grid).float().cpu()
                rows.append((features, grid.half().contiguous().cpu()) if grids else (features,))
                bar.update(len(pixels))
            parts.append(tuple(torch.stack(each) for each in zip(*rows, strict=True)))
    return tuple(torch.cat(each, 1).clone() for each in zip(*parts, strict=True))


def _describe(job: Job, network: Transferable) -> list[str]:
    """Say what is trained on what, and how long it will take here."""
    assert job.recipe.head is not None
    machine, images = job.machine, job.train
    few = min(len(images), images_at_once(images.images.shape))
    one = images.subset(torch.arange(few))
    features_of(network, one, machine, quiet=True)
    begun = time.perf_counter()
    features_of(network, one, machine, quiet=True)
    each = (time.perf_counter() - begun) / len(one) / _VIEWS
    passes, tunes = _views(images) * len(images), applies(job.recipe.head, len(images))
    # In fp32, which takes twice as long; with the mirror image where nothing is tuned.
    tested = (2 if tunes else 4) * len(job.test)
    # A third of the network, forward and backward, in fp32.
    tuning = 2 * each * shown(len(images)) if tunes else 0.0
    training, testing = each * passes, each * tested
    parts = f"features {duration(training)}, " + (f"tuning {duration(tuning)}, " if tuning else "")
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    return [
        *images.notes,
        f"{job.recipe.name}: {len(images):,} images to train on, {len(job.test):,} to test; a frozen network "
        f"and a linear layer of {count_parameters(job.model):,} parameters",
        f"on {machine.hardware}; {machine.device.type}, {machine.precision}, {threads}",
        f"about {duration(training + tuning + testing)} here ({parts}evaluation {duration(testing)}); "
        "features are kept, so the next run on these pictures is faster",
    ]


def _said(fit: HeadFit, head: LogisticHead) -> list[str]:
    """Say what was chosen on held-out training images."""
    lines = []
    if fit.mirror_accuracies is not None:
        plain, mirrored = fit.mirror_accuracies
        verdict = "learns from both" if fit.mirror else "flip=off: mirror images are not learned from"
        lines.append(f"held-out images {plain:.1%}, their mirror images {mirrored:.1%}: {verdict}")
    accuracy = fit.accuracies[fit.strength]
    chosen = f"; strength {fit.strength:g} of {len(head.strengths)}" if len(head.strengths) > 1 else ""
    lines.append(f"cross-validated accuracy on the training images {accuracy:.2%}{chosen}")
    lines.append(advice(fit.curve))
    return lines


def results(record: Record, images: int) -> list[str]:
    """Say what came out. images: in the test set."""
    summary, (low, high) = record.summary, record.summary.test_interval_95 or (0.0, 1.0)
    return [
        f"test accuracy {summary.test_accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, "
        f"{images:,} images)",
        f"training took {duration(summary.train_seconds or 0)}, everything together "
        f"{duration(summary.wall_seconds or 0)}",
    ]
