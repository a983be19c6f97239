"""Feed one reader of files with changed inputs, in this process.

    python -m benchmarks.fuzz_readers NAME SECONDS FINDINGS

Each reader takes bytes and has to return, or raise InputError; anything else is a finding. With atheris
(libFuzzer) what the package's code has covered guides the changes; without it inputs are changed at random.
The seconds are those of a processor, so that a busy machine counts for no more than it did.
`benchmarks.endurance` starts one process a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

Reader = Callable[[bytes], object]


def _atheris() -> ModuleType | None:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def readers(folder: Path) -> dict[str, tuple[Reader, list[bytes]]]:
    """Return each reader with whole inputs to begin with; what has to be a file is written into `folder`."""
    import torch
    from PIL import Image
    from safetensors.torch import save

    from firstlight.data.archives import unpacked
    from firstlight.data.folder_table import list_table
    from firstlight.data.image_files import read_image
    from firstlight.models.weights import read_weights
    from firstlight.recipes import named
    from firstlight.record import results, tables
    from firstlight.record.checkpoints import CHECKPOINTS, Checkpoints
    from firstlight.record.head import HEAD, read_head
    from firstlight.record.recipe_file import recipe_from_json
    from firstlight.record.run_folder import RunFolder, tensors_of
    from firstlight.record.summary import Summary
    from firstlight.record.suspects import SUSPECTS, TrainingSuspects
    from firstlight.record.sweep import SWEEP, Sweep
    from firstlight.record.values import parse
    from firstlight.record.whole import WHOLE, read_whole

    def written(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    def pictures() -> list[bytes]:
        files = []
        for kind, mode in (("PNG", "RGB"), ("PNG", "LA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("GIF", "P")):
            file = io.BytesIO()
            Image.new(mode, (20, 12), 7).save(file, kind)
            files.append(file.getvalue())
        return files

    def archive(data: bytes) -> None:
        suffix = "zip" if data[:2] == b"PK" else "tar"
        with unpacked(written(f"archive.{suffix}", data)) as (place, _):
            outside = [path for path in place.rglob("*") if path.is_symlink()]
        assert not outside

    def archives() -> list[bytes]:
        zipped, tarred = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as file:
            file.writestr("a/b.txt", "c" * 100)
        with tarfile.open(fileobj=tarred, mode="w") as tar:
            member = tarfile.TarInfo("a/b.txt")
            member.size = 100
            tar.addfile(member, io.BytesIO(b"c" * 100))
        return [zipped.getvalue(), tarred.getvalue()]

    def environment(data: bytes) -> None:
        values = parse(data, "environment.json")
        if isinstance(values, dict):
            results.data_facts(results.plain_environment(values, "environment.json"), "environment.json")

    def summary(data: bytes) -> None:
        values = parse(data, "summary.json")
        if isinstance(values, dict):
            Summary.from_json(values)

    def history(data: bytes) -> None:
        written("history.jsonl", data)
        results.history(RunFolder(folder), "history.jsonl")

    def finding(data: bytes) -> None:
        values = parse(data, "finding.json")
        if isinstance(values, dict):
            results.finding(values, "finding.json")

    def recipe(data: bytes) -> None:
        values = parse(data, "recipe.json")
        if isinstance(values, dict):
            recipe_from_json(values)

    def predictions(data: bytes) -> None:
        tensors = tensors_of(data, "predictions.safetensors")
        results.evaluation(tensors, "probabilities", ("a", "b"), "predictions.safetensors")
        results.kept_images(tensors, (1, 2, 2), 3, "predictions.safetensors")

    def suspects(data: bytes) -> None:
        written(SUSPECTS, data)
        TrainingSuspects.read(RunFolder(folder), results.data_facts({"data": facts}, "environment.json"))

    def whole_pictures(data: bytes) -> None:
        written(WHOLE, data)
        read_whole(RunFolder(folder), 3)

    def head(data: bytes) -> None:
        written(HEAD, data)
        read_head(RunFolder(folder))

    def sweep(data: bytes) -> None:
        written(SWEEP, data)
        found = Sweep.open(folder)
        assert str(found)
        assert found.against_best() is not None

    def weights(data: bytes) -> None:
        read_weights(written("weights.pt" if data[:2] == b"PK" else "weights.safetensors", data))

    def pickled() -> bytes:
        file = io.BytesIO()
        torch.save({"state_dict": {"module.a": torch.zeros(2)}}, file)
        return file.getvalue()

    def checkpoint(data: bytes) -> None:
        place = folder / CHECKPOINTS
        place.mkdir(exist_ok=True)
        path = place / f"step-00000001.{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        path.write_bytes(data)
        try:
            last = Checkpoints(RunFolder(folder)).last()
            if last is not None:
                results.history_of(last[1].get("history"), "the checkpoint")
        finally:
            path.unlink()

    epoch = {"epoch": 1, "step": 6, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5}
    epoch |= {"images_per_second": 10.0, "train_seconds": 1.0}
    found = {key: [0.1, 0.2] for key in ("rates", "losses", "smoothed", "interval")}
    rates = {"peak_lr": 0.1, "min_lr": 0.01, "peak_because": "x", "min_because": "y", "seconds": 1.0}
    facts = {"classes": ["a", "b"], "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
    tensors = {
        "labels": torch.tensor([0, 1, 1]),
        "probabilities": torch.full((3, 2), 0.5),
        "indices": torch.tensor([2, 1]),
        "images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
    }
    kept = {"facts": json.dumps({"state": {"step": 1}, "history": [epoch]})}
    suspected = {
        **{"labels": tensors["labels"], "indices": torch.tensor([1]), "suggested": torch.tensor([0])},
        **{"scores": torch.zeros(1), "probabilities": tensors["probabilities"], "count": torch.tensor(1)},
        **{"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "interval": torch.tensor([0, 2])},
        "names": torch.tensor([97, 0], dtype=torch.uint8),
    }
    joined = {
        **{"indices": torch.tensor([2]), "ends": torch.tensor([3])},
        "bytes": torch.tensor([0xFF, 0xD8, 0xFF], dtype=torch.uint8),
    }
    fitted = {
        **{"strength": 1.0, "accuracy": 0.5, "mirror": True, "mirror_accuracies": [0.5, 0.6]},
        **{"curve": [[10, 0.5]], "tuning": {"before": 0.5, "after": 0.6, "better": True}},
    }
    cells = [
        {"values": {"width": width}, "seed": seed, "folder": f"{width}-{seed}", "validation_accuracy": 0.5}
        for width in ("4", "8")
        for seed in (0, 1)
    ]
    return {
        "pictures": (lambda data: read_image(written("picture", data), (3, 32, 32), "crop"), pictures()),
        "archives": (archive, archives()),
        "tables of names": (
            lambda data: tables.names(data.decode("utf-8", "replace")),
            [b"index,name\n1,x\n"],
        ),
        "tables of labels": (
            lambda data: list_table(written("table.csv", data)),
            [b"file,label\npicture.png,a\n", b"a;b\n"],
        ),
        "recipes": (recipe, [json.dumps(named(name).to_json()).encode() for name in _RECIPES]),
        "environment": (environment, [json.dumps({"data": facts, "threads": 2}).encode()]),
        "summary": (summary, [json.dumps(Summary(test_accuracy=0.5).to_json()).encode()]),
        "history": (history, [json.dumps(epoch).encode() + b"\n"]),
        "finding": (finding, [json.dumps({**found, **rates}).encode()]),
        "predictions": (predictions, [save(tensors)]),
        "checkpoints": (checkpoint, [save(tensors, kept)]),
        "suspects": (suspects, [save(suspected)]),
        "whole pictures": (whole_pictures, [save(joined)]),
        "head": (head, [json.dumps(fitted).encode()]),
        "sweep": (sweep, [json.dumps({"cells": cells}).encode()]),
        "weights": (weights, [save(tensors), pickled()]),
    }


_RECIPES = ("shapes.demo", "cifar10.fast")
NAMES = (
    *("pictures", "archives", "tables of names", "tables of labels", "recipes", "environment"),
    *("summary", "history", "finding", "predictions", "checkpoints"),
    *("suspects", "whole pictures", "head", "sweep", "weights"),
)


def fuzz(name: str, seconds: float, findings: Path) -> None:
    """Change inputs of one reader for so long; the last line of the output is what came of it, as JSON."""
    atheris = _atheris()
    with contextlib.ExitStack() as stack:
        if atheris is not None:
            stack.enter_context(atheris.instrument_imports(include=["firstlight"]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="firstlight-fuzz-")))
        os.environ["FIRSTLIGHT_CACHE"] = str(folder / "cache")
        reader, seeds = readers(folder)[name]
        from firstlight.errors import InputError

        end, count = time.process_time() + seconds, 0

        def once(data: bytes) -> None:
            nonlocal count
            if time.process_time() > end:
                print(json.dumps({"executions": count}), flush=True)
                stack.close()
                os._exit(0)  # libFuzzer knows no other end than its own clock
            count += 1
            with contextlib.suppress(InputError):
                reader(data)

        findings.mkdir(parents=True, exist_ok=True)
        for data in seeds:
            once(data)
        if atheris is None:
            _at_random(once, seeds, findings / name.replace(" ", "-"))
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
        options = (
            # The timeout is by the clock, which goes on while a process waits for a core.
            *("-rss_limit_mb=4096", "-timeout=1200", "-report_slow_units=1200"),
            *(f"-artifact_prefix={findings}/{name.replace(' ', '-')}-", str(corpus)),
        )
        atheris.Setup([sys.argv[0], *options], once)
        atheris.Fuzz()


def _at_random(once: Callable[[bytes], None], seeds: list[bytes], finding: Path) -> NoReturn:
    """Change inputs at random until `once` ends the process; raise what it raised, and keep its input."""
    draw = random.Random(0)
    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 2, 4, 16))):
            place = draw.randrange(len(data) + 1)
            match draw.randrange(4):
                case 0:
                    data[place : place + 1] = bytes([draw.randrange(256)])
                case 1:
                    del data[place : place + draw.randrange(1, 9)]
                case 2:
                    data[place:place] = draw.choice(
                        (b"\xff\xff\xff\xff", b"[", b'"', b"1e999", b"-", b"\0" * 8)
                    )
                case _:
                    data[place:place] = data[: draw.randrange(1, 17)]
        try:
            once(bytes(data))
        except BaseException:
            Path(f"{finding}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("name", choices=NAMES, help="the reader")
    options.add_argument("seconds", type=float, help="of a processor")
    options.add_argument("findings", type=Path, help="folder for inputs that failed")
    arguments = options.parse_args()
    fuzz(arguments.name, arguments.seconds, arguments.findings)


if __name__ == "__main__":
    main()
