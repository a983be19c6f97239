"""Cells on a Ray cluster: a task each; the cell of a lost worker goes on elsewhere, from its checkpoint.

Ray Core and not Ray Tune: a cell is a whole run that reports nothing while it works, and Tune would bring
pandas and a second place for results and checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from firstlight.errors import InputError, RunFailed
from firstlight.jobs.cells import Ended, Failure, Log, Plan, Train
from firstlight.recipe import Recipe
from firstlight.record.run_folder import RunFolder

RETRIES = 5
"""How often a cell whose worker or node was lost is begun again."""
_LOCK_SECONDS = 120.0
"""How long a cell waits for the lock of the worker before, which may outlive its node by a moment."""
_STOP_SECONDS = 60.0
"""How long stopped cells have for their checkpoints."""
_VARIABLES = ("FIRSTLIGHT_OFFLINE", "FIRSTLIGHT_KERNELS", "FIRSTLIGHT_MEMORY")
_PATHS = ("FIRSTLIGHT_DATA", "FIRSTLIGHT_CACHE")
"""What of the environment a cell takes along."""


def load_ray() -> Any:
    """Return the module `ray`; raises InputError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise InputError("--on ray needs Ray, which is not here: pip install 'firstlight[cluster]'") from None
    return ray


class OnRay:
    """An engine that asks Ray for cores and GPUs for each cell. gpus: may be a fraction, which shares one."""

    def __init__(self, threads: int, gpus: float) -> None:
        self.threads, self.gpus, self.ray = threads, gpus, load_ray()

    def __call__(self, plans: Sequence[Plan], one: Train, options: Mapping[str, Any], log: Log) -> Ended:
        """Do all plans, as many at a time as there is room for."""
        ray = self.ray
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        variables |= {name: os.path.abspath(os.environ[name]) for name in _PATHS if os.environ.get(name)}
        with _connected(ray):
            log(self._room(ray.nodes()))
            task = ray.remote(train_cell).options(
                num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES, name="firstlight"
            )
            shared = (one, {**options, "quiet": True}, self.threads, variables)
            tasks = {task.remote(plan.recipe, os.path.abspath(plan.path), *shared): plan for plan in plans}
            try:
                while tasks:
                    (done, *_), _ = ray.wait([*tasks], num_returns=1)
                    failure = _failure(ray, done)
                    plan = tasks.pop(done)
                    log(f"{plan.title}: {'failed' if failure else 'done'}")
                    yield plan, failure
            finally:
                _stop(ray, [*tasks])

    def _room(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """Say how many cells run at a time."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        slots = [int(each.get("CPU", 0) // self.threads) for each in alive]
        if self.gpus:
            slots = [
                min(n, int(each.get("GPU", 0) / self.gpus)) for n, each in zip(slots, alive, strict=True)
            ]
        what = f"{self.threads} core{'s'[: self.threads - 1]}" + (
            f" and {self.gpus:g} GPU" if self.gpus else ""
        )
        where = f"{len(alive)} node{'s'[: len(alive) - 1]}"
        if not sum(slots):
            return f"note: no node of the Ray cluster has {what} now; the cells wait until one has"
        return f"Ray: {sum(slots)} at a time on {where}, each with {what}"


def train_cell(
    recipe: Recipe,
    path: str,
    one: Train,
    options: Mapping[str, Any],
    threads: int,
    variables: Mapping[str, str],
) -> tuple[str, str, str]:
    """Train one cell in a worker; returns kind, message and hint of what went wrong, or three empty texts.

    Not the error itself: one with arguments of its own cannot be sent.
    """
    torch.set_num_threads(threads)
    os.environ.update(variables)
    try:
        if (folder := RunFolder(Path(path))).path.exists():
            with folder.lock(_LOCK_SECONDS):
                pass
        one(recipe, out=path, resume="auto", **options)
    except InputError as error:
        return "input", error.message, error.hint
    except RunFailed as error:
        return "run", error.message, error.hint
    except KeyboardInterrupt:
        # The node is being stopped, or the sweep. Ray would take an exception for the cell's own result; a
        # worker that ends it counts as lost, and begins the cell again unless it was cancelled.
        os._exit(1)
    return "", "", ""


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Use the session's connection, the cluster of RAY_ADDRESS, one on this machine, or else one of our own.

    Leaving disconnects: a cluster that was there before goes on.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    check_answers(address)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        hint = "RAY_ADDRESS names the cluster, and RAY_AUTH_TOKEN_PATH the file of its token if it has one."
        raise InputError(f"cannot use the Ray cluster {address or 'here'}: {reason}", hint) from None
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise InputError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        message = f"no Ray cluster answers at {address}: {error.strerror or error}"
        raise InputError(message, "Correct RAY_ADDRESS, or unset it to use this machine alone.") from None


def _failure(ray: Any, task: Any) -> Failure | None:
    """Return why a task came to no end; a fault of the program is raised as it is."""
    try:
        kind, message, hint = ray.get(task)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        return RunFailed(f"its worker was lost, at the last of {RETRIES + 1} attempts: {reason}")
    if kind == "input":
        return InputError(message, hint)
    return RunFailed(message, hint) if kind else None


def _stop(ray: Any, tasks: Sequence[Any]) -> None:
    """Ask tasks to stop, and wait until those that run have written a checkpoint."""
    if not tasks or not ray.is_initialized():
        return
    for task in tasks:
        ray.cancel(task)
    ray.wait([*tasks], num_returns=len(tasks), timeout=_STOP_SECONDS)
