"""The one place where the rooms meet: prepare, find, train, evaluate, write."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import firstlight
from firstlight import record, runtime
from firstlight.data.batches import Batches, plan_epoch
from firstlight.data.images import ImageSet
from firstlight.errors import InputError
from firstlight.insight.evaluation import Evaluation, evaluate
from firstlight.models.blocks import count_parameters
from firstlight.recipe import Recipe
from firstlight.recipes import named
from firstlight.record import RunFolder
from firstlight.report.progress import Progress, duration
from firstlight.results import Run
from firstlight.runtime import Machine
from firstlight.training.history import History
from firstlight.training.loop import Best, Objective, TrainState, fit, train_step
from firstlight.training.lr_finder import LRFinding, range_test
from firstlight.training.schedule import OneCycle

KEPT_MISTAKES = 2000
KEPT_RIGHT_PER_CLASS = 30
SAMPLES = 8
"""How many training images are kept to show their augmentations."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe made ready to run: its images, its machine, and its untrained network."""

    recipe: Recipe
    machine: Machine
    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    batches: Batches
    model: nn.Module
    objective: Objective

    @classmethod
    def prepare(
        cls, recipe: Recipe, data_dir: Path | None, device: str = "auto", precision: str = "auto"
    ) -> Job:
        """Load the data and build the network; nothing is written yet."""
        machine = runtime.prepare(device, precision)
        train, test = recipe.data.load(data_dir)
        validation = None
        if recipe.validation:
            train, validation = train.split(recipe.validation, runtime.stream(recipe.seed, "validation"))
        batches = Batches(train, recipe.batch_size, recipe.augment, seed=recipe.seed, machine=machine)
        with runtime.seeded(recipe.seed, "weights"):
            model = machine.place(recipe.model(len(train.classes), train.shape[0]))
        objective = Objective(recipe.label_smoothing, recipe.l1, recipe.clip_norm)
        return cls(recipe, machine, train, validation, test, batches, model, objective)

    def find_rates(self) -> LRFinding:
        """Run the learning-rate range test on a copy of the network."""
        return range_test(
            self.model, self.batches, self.recipe.optimizer, self.machine, objective=self.objective
        )

    def schedule(self, finding: LRFinding | None) -> OneCycle:
        """Return the schedule, with rates found where the recipe leaves them open."""
        recipe = self.recipe
        peak = recipe.peak_lr if recipe.peak_lr is not None or finding is None else finding.peak_lr
        low = recipe.min_lr if recipe.min_lr is not None or finding is None else finding.min_lr
        if peak is None or low is None:
            raise InputError("the recipe leaves a rate open and no finding was given")
        return OneCycle.over_epochs(
            peak,
            min(low, peak),  # a found LRMIN yields to a lower peak that was set
            epochs=recipe.epochs,
            peak_epoch=recipe.peak_epoch,
            steps_per_epoch=len(self.batches),
            shape=recipe.schedule,
        )

    def step_seconds(self) -> float:
        """Time a training step on a copy of the network, warm-up apart."""
        state = TrainState.create(copy.deepcopy(self.model), self.recipe.optimizer, self.machine)
        state.model.train()
        seconds = []
        for _, (images, labels) in zip(range(3), self.batches.epoch(0), strict=False):
            watch = runtime.Stopwatch(self.machine)
            watch.start()
            train_step(state, images, labels, 0.0, self.objective, self.machine)
            watch.pause()
            seconds.append(watch.seconds)
        return min(seconds)

    def estimate(self, step_seconds: float) -> dict[str, float]:
        """Return the seconds that each part of the run will take here, about."""
        recipe = self.recipe
        open_rates = recipe.peak_lr is None or recipe.min_lr is None
        # A forward pass is a third of a step. The test set is scored once an epoch, and twice for TTA.
        passes = (recipe.epochs + 2) * len(self.test) + recipe.epochs * recipe.validation
        return {
            "learning rates": 80 * step_seconds if open_rates else 0.0,
            "training": recipe.epochs * len(self.batches) * step_seconds,
            "evaluation": passes / recipe.batch_size * step_seconds / 3,
        }


def resolve(
    recipe: str | Recipe, *, epochs: int | str | None = None, seed: int | str | None = None, **settings: Any
) -> Recipe:
    """Return a recipe by name or value, changed as asked.

    epochs: shrinks or stretches the schedule in proportion; settings are those of `Recipe.replace`.
    """
    chosen = named(recipe) if isinstance(recipe, str) else recipe
    if epochs is not None:
        before, chosen = chosen, chosen.replace(epochs=epochs, peak_epoch=min(chosen.peak_epoch, 1e-9))
        chosen = chosen.replace(peak_epoch=before.peak_epoch * chosen.epochs / before.epochs)
    if seed is not None:
        settings["seed"] = seed
    return chosen.replace(**settings)


def train(
    recipe: str | Recipe,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Do the whole job, from data to pictures, and return the finished run.

    out: a folder that does not exist yet; by default runs/NAME, with a number when taken.
    Raises InputError before anything is written, and Diverged where the loss stops being finite.
    """
    began = time.perf_counter()
    say = _silent if quiet else _say
    chosen = resolve(recipe, epochs=epochs, seed=seed, **settings)
    if out is not None and Path(out).exists():
        raise InputError(f"{out} exists already", "Choose another --out, or remove it.")
    job = Job.prepare(chosen, _path(data_dir), device, precision)
    say(f"{chosen.name}: {len(job.train):,} images to train on, {len(job.test):,} to test, "
        f"{count_parameters(job.model):,} parameters")
    say(f"on {job.machine.hardware}; {job.machine.device.type}, {job.machine.precision}, "
        f"{job.machine.threads} threads")
    say(_forecast(job))
    finding = None
    if chosen.peak_lr is None or chosen.min_lr is None:
        finding = job.find_rates()
        say(f"LRMAX {finding.peak_lr:g}: {finding.peak_because}")
        say(f"LRMIN {finding.min_lr:g}: {finding.min_because}")
    schedule = job.schedule(finding)
    folder = RunFolder.create(chosen.name, _path(out))
    folder.write_json(record.RECIPE, {"recipe": chosen.to_json()})
    folder.write_json(record.ENVIRONMENT, _environment(job))
    if finding is not None:
        folder.write_json(record.FINDING, finding.to_json())
    folder.write_tensors(record.SAMPLES, _samples(job))
    state = TrainState.create(job.model, chosen.optimizer, job.machine, average_decay=chosen.average_decay)
    history, best, stopped = _fit(job, state, schedule, folder, quiet)
    if stopped and not len(history):
        folder.remove("")
        raise KeyboardInterrupt
    model = _kept_weights(state, best, folder, history)
    folder.write_tensors(record.MODEL, model.state_dict())
    summary = _summary(job, schedule, history) | {"interrupted": stopped}
    if not stopped:
        summary |= _judge(job, model, history, best, folder)
    summary["wall_seconds"] = time.perf_counter() - began
    folder.write_json(record.SUMMARY, summary)
    if stopped:
        say(f"Stopped after epoch {len(history)} of {chosen.epochs}; its weights and history are in {folder.path}.")
        raise KeyboardInterrupt
    return Run(folder)


def _fit(
    job: Job, state: TrainState, schedule: OneCycle, folder: RunFolder, quiet: bool
) -> tuple[History, Best | None, bool]:
    """Train to the end or to Ctrl-C; after each epoch keep its weights and the history on disk."""
    recipe, history = job.recipe, History()
    best = Best() if recipe.best_on_validation else None
    progress = Progress(recipe.epochs * len(job.batches), recipe.epochs, quiet=quiet)
    try:
        for tick in fit(
            state, job.batches, schedule, epochs=recipe.epochs, machine=job.machine, objective=job.objective
        ):
            progress.update(tick)
            if tick.epoch is None:
                continue
            epoch = tick.epoch
            if job.validation is not None:
                seen = evaluate(state.trained, job.validation, job.machine)
                epoch = dataclasses.replace(epoch, validation_loss=seen.loss, validation_accuracy=seen.accuracy)
                if best is not None:
                    best.offer(state.trained, epoch.epoch, seen.accuracy)
            folder.write_tensors(_snapshot(epoch.epoch), state.trained.state_dict())
            history = history.with_epoch(epoch)
            folder.write(record.HISTORY, history.to_jsonl())
            progress.epoch(epoch)
    except KeyboardInterrupt:
        return history, best, True
    finally:
        progress.close()
    return history, best, False


def _snapshot(epoch: int) -> str:
    return f"{record.SNAPSHOTS}/epoch-{epoch:03d}.safetensors"


def _kept_weights(state: TrainState, best: Best | None, folder: RunFolder, history: History) -> nn.Module:
    """Return the network with the weights that the run keeps: the best on validation, else the last epoch's."""
    model = state.trained
    kept = best.weights if best and best.weights else folder.read_tensors(_snapshot(len(history)))
    model.load_state_dict(kept)
    return model


def _judge(
    job: Job, model: nn.Module, history: History, best: Best | None, folder: RunFolder
) -> dict[str, Any]:
    """Score the test set with the kept weights and with each epoch's snapshot, write both, and remove the snapshots."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    plain = evaluate(model, job.test, job.machine)
    mirrored = evaluate(model, job.test, job.machine, tta=True)
    curve = []
    for epoch in history:
        if epoch.epoch == len(history) and best is None:
            curve.append((plain.loss, plain.accuracy))
            continue
        model.load_state_dict(folder.read_tensors(_snapshot(epoch.epoch)))
        seen = evaluate(model, job.test, job.machine)
        curve.append((seen.loss, seen.accuracy))
    model.load_state_dict(kept)
    folder.write(record.HISTORY, history.with_test(curve).to_jsonl())
    folder.remove(record.SNAPSHOTS)
    write_evaluation(folder, plain, mirrored, job.test)
    return {
        "test_accuracy": plain.accuracy,
        "test_accuracy_tta": mirrored.accuracy,
        "test_interval_95": list(plain.interval),
        "test_loss": plain.loss,
        "kept_epoch": best.epoch if best else len(history),
    }


def write_evaluation(folder: RunFolder, plain: Evaluation, mirrored: Evaluation, images: ImageSet) -> None:
    """Keep all probabilities, a table of all mistakes, and the images that pictures of the run need."""
    folder.write_tensors(
        record.PREDICTIONS,
        {
            "labels": plain.labels,
            "probabilities": plain.probabilities,
            "probabilities_tta": mirrored.probabilities,
        },
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "name", "true", "predicted", "confidence", "loss"])
    for index in plain.mistakes.tolist():
        said = int(plain.predictions[index])
        confidence = f"{float(plain.probabilities[index, said]):.6f}"
        true = plain.classes[int(plain.labels[index])]
        loss = f"{float(plain.losses[index]):.6f}"
        writer.writerow([index, plain.names[index], true, plain.classes[said], confidence, loss])
    folder.write(record.MISTAKES, table.getvalue())
    right = [
        torch.nonzero((plain.labels == label) & (plain.predictions == label)).flatten()[:KEPT_RIGHT_PER_CLASS]
        for label in range(len(plain.classes))
    ]
    kept = torch.cat([plain.mistakes[:KEPT_MISTAKES], *right])
    folder.write_tensors(record.PICTURES, {"indices": kept, "images": images.images[kept]})


def _samples(job: Job) -> dict[str, Tensor]:
    """Return the first training images of epoch 1 with the draws that augment them there."""
    plan = plan_epoch(job.train, job.recipe.augment, job.recipe.seed, 0).rows(0, SAMPLES)
    draws = {f"draws_{place}": drawn for place, drawn in enumerate(plan.draws)}
    return {"images": job.train.images[plan.order], "labels": job.train.labels[plan.order], **draws}


def _summary(job: Job, schedule: OneCycle, history: History) -> dict[str, Any]:
    last = history.epochs[-1]
    return {
        "recipe": job.recipe.name,
        "seed": job.recipe.seed,
        "epochs": len(history),
        "test_accuracy": None,
        "test_accuracy_tta": None,
        "test_interval_95": None,
        "train_accuracy": last.train_accuracy,
        "train_loss": last.train_loss,
        "validation_accuracy": last.validation_accuracy,
        "peak_lr": schedule.peak_lr,
        "min_lr": schedule.min_lr,
        "train_seconds": last.train_seconds,
        "parameters": count_parameters(job.model),
        "device": job.machine.device.type,
        "hardware": job.machine.hardware,
        "threads": job.machine.threads,
        "precision": job.machine.precision,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _environment(job: Job) -> dict[str, Any]:
    machine, train = job.machine, job.train
    return {
        "firstlight": firstlight.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "hardware": machine.hardware,
        "device": machine.device.type,
        "precision": machine.precision,
        "threads": machine.threads,
        "allocator": machine.allocator,
        "data": {
            "source": job.recipe.data.name,
            "classes": list(train.classes),
            "shape": list(train.shape),
            "mean": list(train.mean),
            "std": list(train.std),
            "train_images": len(train),
            "validation_images": 0 if job.validation is None else len(job.validation),
            "test_images": len(job.test),
            "train_sha256": train.digest,
            "test_sha256": job.test.digest,
        },
    }


def _forecast(job: Job) -> str:
    parts = job.estimate(job.step_seconds())
    listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return f"about {duration(sum(parts.values()))} here ({listed})"


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    pass
