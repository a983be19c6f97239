"""What a trained network is worth: its answers on the test set, and the numbers of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from firstlight.insight.evaluation import Evaluation, evaluate
from firstlight.jobs.job import Job, scored_epochs
from firstlight.machine.clock import Stopwatch
from firstlight.models.network import count_parameters
from firstlight.record.record import Record
from firstlight.record.summary import Summary
from firstlight.record.whole import write_whole
from firstlight.training.history import Epoch
from firstlight.training.state import TrainState

_MOST_WHOLE = 240
"""Mistakes that are kept in the shape of their files: about 3 MB."""

Weights = dict[str, Tensor] | None


def numbers(job: Job, record: Record, state: TrainState) -> Summary:
    """Return the numbers of a run as far as it has got."""
    last = record.history.epochs[-1] if len(record.history) else None
    rates, cost = job.rates(record.finding, record.halvings), record.checkpoints.cost()
    return Summary(
        recipe=job.recipe.name,
        seed=job.recipe.seed,
        epochs=len(record.history),
        interrupted=state.step < job.recipe.epochs * len(job.batches),
        train_accuracy=None if last is None else last.train_accuracy,
        train_loss=None if last is None else last.train_loss,
        validation_accuracy=None if last is None else last.validation_accuracy,
        peak_lr=rates.peak_lr,
        min_lr=rates.min_lr,
        halvings=record.halvings,
        train_seconds=None if last is None else last.train_seconds,
        parameters=count_parameters(job.model),
        device=job.machine.device.type,
        hardware=job.machine.hardware,
        threads=job.machine.threads,
        precision=job.machine.precision,
        torch=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
        checkpoint_seconds=cost["checkpoint_seconds"],
        checkpoint_bytes=cost["checkpoint_bytes"],
    )


def validated(epoch: Epoch, job: Job, state: TrainState) -> Epoch:
    """Return the epoch with its scores on validation images, where there are some."""
    if job.validation is None:
        return epoch
    scores = evaluate(state.trained, job.validation, job.machine)
    if state.best is not None:
        state.best.offer(state.trained, epoch.epoch, scores.accuracy)
    return dataclasses.replace(epoch, validation_loss=scores.loss, validation_accuracy=scores.accuracy)


def kept_network(
    state: TrainState, record: Record, share: Callable[[Weights], Weights] = lambda weights: weights
) -> nn.Module | None:
    """Return the network with the weights to keep, and write them; None before the first epoch's end.

    share: gives all processes of a run the weights of the first.
    They are the best on validation where these are asked for, else the last whole epoch's.
    """
    best = state.best.weights if state.best is not None else {}
    weights = share(best or record.checkpoints.snapshot(len(record.history)))
    if weights is None:
        return None
    model = state.trained
    model.load_state_dict(weights)
    record.write_model(model)
    return model


def keep_whole(job: Job, evaluation: Evaluation, record: Record) -> None:
    """Keep the worst mistakes in the shape of their files, where the data has files that are not square."""
    whole = getattr(job.recipe.data, "whole", None)
    if whole is None:
        return
    worst = evaluation.mistakes[:_MOST_WHOLE].tolist()
    pictures = zip(worst, whole([evaluation.names[index] for index in worst], job.data_dir), strict=True)
    write_whole(record.folder, {index: picture for index, picture in pictures if picture})


def judge(job: Job, model: nn.Module, state: TrainState, record: Record) -> Summary:
    """Score the test set with the kept weights, and with each epoch's for the curve; write both."""
    recipe, machine, best = job.recipe, job.machine, state.best
    plain = evaluate(model, job.test, machine)
    watch = Stopwatch(machine)
    watch.start()
    averaged = evaluate(model, job.test, machine, views=recipe.views)
    watch.pause()
    record.write_evaluation(plain, averaged, job.test)
    keep_whole(job, plain, record)
    curve: list[tuple[float, float] | None] = []
    scored = scored_epochs(len(record.history))
    for epoch in record.history:
        if epoch.epoch == len(record.history) and best is None:
            curve.append((plain.loss, plain.accuracy))
            continue
        weights = record.checkpoints.snapshot(epoch.epoch) if epoch.epoch in scored else None
        weights = machine.ranks.broadcast(weights)
        if weights is None:  # or damaged while the run stood still
            curve.append(None)
            continue
        model.load_state_dict(weights)
        scores = evaluate(model, job.test, machine)
        curve.append((scores.loss, scores.accuracy))
    record.write_history(record.history.with_test(curve))
    return dataclasses.replace(
        numbers(job, record, state),
        test_accuracy=plain.accuracy,
        test_accuracy_tta=averaged.accuracy,
        tta_seconds=watch.seconds,
        test_interval_95=plain.interval,
        test_loss=plain.loss,
        kept_epoch=best.epoch if best is not None else len(record.history),
    )
