"""A finished run made a network of the package: weights in half precision, and a card of what they are.

    python -m benchmarks.publish.pretrained RUN NAME --data-dir DIR

The weights are rounded to fp16 first. The card's accuracy is that of the rounded weights, computed in fp32 on
a CPU with torch's own operations: what `firstlight evaluate pretrained:NAME` computes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from firstlight import __version__
from firstlight.insight.evaluation import Evaluation
from firstlight.record.packaged import CARD, PREFIX, WEIGHTS
from firstlight.record.record import ENVIRONMENT, SUMMARY
from firstlight.record.run_folder import RECIPE, SCHEMA
from firstlight.run import Run, open_run

ROOM = Path(__file__).resolve().parents[2] / "src/firstlight/models/pretrained"
MOST_BYTES = 5_000_000
CLOSE = 1e-4
KEPT_FACTS = ("firstlight", "torch", "hardware", "device", "precision", "kernels", "step", "command", "data")
LIMITS = (
    "It knows ten classes, and calls every picture one of them: it cannot say that it sees something else.",
    "It learned from pictures of 32×32 pixels with the object in the middle. Larger pictures are reduced to "
    "that, and an object that fills a small part of a photo is lost.",
    "Pictures from elsewhere are classified worse than the test set, which comes from the same collection "
    "as the training set: expect several to many points less.",
    "Its probabilities were fitted with label smoothing: they are too low where it is right.",
    "Use it to try the package, to teach, and as a baseline; not where a wrong answer does harm.",
)


def rounded(run: Run) -> bytes:
    """Return the weights in half precision, as the bytes of a safetensors file."""
    tensors = {}
    for key, value in run.model.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        if not half.isfinite().all():
            raise SystemExit(f"{key} does not fit half precision")
        tensors[key] = half.contiguous().clone()
    return save(tensors)


def write_files(folder: Path, files: dict[str, dict[str, Any] | bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        (folder / name).write_bytes(content)


def close_calls(evaluation: Evaluation) -> int:
    """Return how many images have two highest probabilities that differ by less than CLOSE."""
    best = evaluation.probabilities.topk(2).values
    return int((best[:, 0] - best[:, 1] < CLOSE).sum())


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("name")
    options.add_argument("--data-dir", type=Path)
    arguments = options.parse_args()
    run = open_run(arguments.run)
    weights = rounded(run)
    if len(weights) > MOST_BYTES:
        raise SystemExit(f"{len(weights):,} bytes of weights; at most {MOST_BYTES:,} belong into the package")
    summary = run.summary
    environment = {key: run.environment[key] for key in KEPT_FACTS}
    card: dict[str, Any] = {
        "name": f"{PREFIX}{arguments.name}",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "parameters": summary.parameters,
        "licence": "Apache-2.0 for the weights; CIFAR-10 (Krizhevsky 2009), on which they were trained, has "
        "no licence of its own",
        "trained": {
            "command": environment["command"],
            "hardware": environment["hardware"],
            "precision": environment["precision"],
            "torch": environment["torch"],
            "train_seconds": summary.train_seconds,
            "date": summary.date,
            "test_accuracy": summary.test_accuracy,
        },
        "limits": list(LIMITS),
    }
    folder = ROOM / arguments.name
    recipe = {"schema": SCHEMA, "recipe": run.recipe.to_json()}
    files: dict[str, dict[str, Any] | bytes] = {
        WEIGHTS: weights,
        RECIPE: recipe,
        ENVIRONMENT: {"schema": SCHEMA, **environment},
        CARD: card,
    }
    write_files(folder, files)
    # From here on the packaged network itself is asked.
    network = open_run(card["name"])
    plain, averaged = (network.evaluate(data_dir=arguments.data_dir, tta=tta) for tta in (False, True))
    card["evaluated"] = {
        "how": "rounded weights, fp32, CPU, torch's own operations, without TTA",
        "torch": torch.__version__,
        "firstlight": __version__,
        "images": len(plain.labels),
        "right": plain.right,
        "test_accuracy": plain.accuracy,
        "interval_95": list(plain.interval),
        "test_loss": round(plain.loss, 4),
        "right_tta": averaged.right,
        "test_accuracy_tta": averaged.accuracy,
        "calibration_error": round(plain.calibration().error, 4),
        "close_calls": close_calls(plain),
        "recall": {score.name: score.recall for score in plain.per_class},
    }
    judged = {
        "schema": SCHEMA,
        "recipe": summary.recipe,
        "seed": summary.seed,
        "epochs": summary.epochs,
        "interrupted": False,
        "test_accuracy": plain.accuracy,
        "test_accuracy_tta": averaged.accuracy,
        "test_interval_95": list(plain.interval),
        "test_loss": plain.loss,
        "parameters": summary.parameters,
        "precision": "fp32",
        "date": summary.date,
    }
    write_files(folder, {CARD: card, SUMMARY: judged})
    print(f"{folder}: {len(weights):,} bytes, {plain.right:,} of {len(plain.labels):,} right")


if __name__ == "__main__":
    main()
