"""Golden traces: what each recipe computed when they were recorded, so that moving code changes no number.

`losses.json` holds the first 20 losses of each recipe at toy size and low rates, and of a range test, in
fp32, by one thread; another torch or another chip meets them within a tolerance. `digests.json` holds, for
each kind of machine on which they were recorded, the hashes of the weights and of the predictions of a whole
run of two epochs in bf16.

    python tests/golden/test_golden.py losses | digests     # record them anew
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import load_file

import firstlight
from firstlight.data.shapes import Shapes
from firstlight.jobs.job import Job
from firstlight.machine.machine import Machine, operations_on
from firstlight.machine.processor import hardware_name
from firstlight.recipe import Recipe
from firstlight.recipes import RECIPES, resolve
from firstlight.training import optimizers
from firstlight.training.loop import train_step
from firstlight.training.range_test import RangeTest

HERE = Path(__file__).parent
LOSSES, DIGESTS = HERE / "losses.json", HERE / "digests.json"
STEPS = 20
TOLERANCE = 5e-3
"""Relative, of each loss: sums in another order change the last bits, which steps let grow."""
LOWERED = 20
"""The rates of the traces are lower by this factor: at a recipe's own, two chips part by 1 % in ten steps."""


TRAINED = [name for name in RECIPES if resolve(name).head is None]
"""Recipes that take steps."""


def toy(name: str, train: int) -> Recipe:
    """Return a recipe that trains in seconds, on the built-in set, with rates; all else as it stands."""
    recipe = resolve(name)
    peak_lr = recipe.schedule.peak_lr or 0.1
    recipe = resolve(recipe, peak_lr=peak_lr, min_lr=recipe.schedule.min_lr or peak_lr / 100)
    small = {"width": 16, "widths": (16, 32, 32), "stem": 16}
    fields = {field.name for field in dataclasses.fields(recipe.model)}
    model = dataclasses.replace(recipe.model, **{key: small[key] for key in small if key in fields})
    return dataclasses.replace(recipe, data=Shapes(train=train, test=20), model=model, batch_size=32).over(2)


def losses(name: str) -> list[float]:
    """Take the first steps of a recipe over two epochs, in fp32, with one thread."""
    recipe = toy(name, train=320)
    peak, low = recipe.schedule.peak_lr, recipe.schedule.min_lr
    assert peak is not None and low is not None
    recipe = resolve(recipe, peak_lr=peak / LOWERED, min_lr=low / LOWERED)
    machine = Machine(torch.device("cpu"), "fp32", 1, "test")
    job = Job.with_images(*recipe.data.load(), recipe, machine)
    state, schedule = job.state(), job.schedule()
    state.model.train()
    batches = itertools.chain.from_iterable(job.batches.epoch(epoch) for epoch in range(2))
    return [
        float(train_step(state, images, labels, schedule(state.step), recipe.objective, machine))
        for images, labels in itertools.islice(batches, STEPS)
    ]


def range_test() -> list[float]:
    """Return the first losses of a range test in fp32; those of high rates, and the answer, vary by chip."""
    recipe = dataclasses.replace(toy("shapes.demo", train=1000), batch_size=200)
    finding = firstlight.find_lr(recipe, device="cpu", precision="fp32", finder=RangeTest())
    return list(finding.losses[:STEPS])


def machine_key() -> str:
    """Name what the last bits depend on: the chip, torch, and the operations that are taken."""
    cpu = torch.device("cpu")
    machine = Machine(cpu, "bf16", 1, "")
    return f"{hardware_name(cpu)}; torch {torch.__version__}; {operations_on(machine)}"


def digests(name: str, out: Path) -> dict[str, str]:
    """Train a recipe over two epochs in bf16; hash what came out."""
    firstlight.train(toy(name, train=64), out=out, device="cpu", precision="bf16", quiet=True)
    parts = {}
    for file in ("model", "predictions"):
        sha = hashlib.sha256()
        for value in load_file(out / f"{file}.safetensors").values():
            sha.update(value.contiguous().numpy().tobytes())
        parts[file] = sha.hexdigest()
    return parts


@pytest.mark.parametrize("name", TRAINED)
def test_the_losses_are_the_recorded_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where bf16 products are fast Muon iterates in bf16, which is another trace.
    monkeypatch.setattr(optimizers, "fast_bf16_products", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert losses(name) == pytest.approx(json.loads(LOSSES.read_text())[name], rel=TOLERANCE)
    finally:
        torch.set_num_threads(threads)


def test_the_range_test_has_the_recorded_losses() -> None:
    assert range_test() == pytest.approx(json.loads(LOSSES.read_text())["range test"], rel=TOLERANCE)


@pytest.mark.parametrize("name", TRAINED)
def test_a_whole_run_ends_with_the_recorded_bits(name: str, tmp_path: Path) -> None:
    recorded: dict[str, Any] = json.loads(DIGESTS.read_text())
    if machine_key() not in recorded:
        pytest.skip(f"no digests were recorded on such a machine ({machine_key()})")
    if name not in recorded[machine_key()]:
        pytest.skip(f"this recipe came later than the digests of {machine_key()}")
    assert digests(name, tmp_path / "run") == recorded[machine_key()][name]


def record(kind: str) -> None:
    """Write the file of one kind from what the code computes now."""
    if kind == "losses":
        optimizers.fast_bf16_products = lambda: False
        traces = {"range test": range_test(), **{name: losses(name) for name in TRAINED}}
        LOSSES.write_text(json.dumps(traces, indent=1) + "\n")
        return
    known = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        known[machine_key()] = {name: digests(name, Path(folder, name)) for name in TRAINED}
    DIGESTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
