"""A folder ready for a model hub: the ONNX file, the script that uses it, and a card filled from the run."""

from __future__ import annotations

from pathlib import Path

from firstlight.errors import InputError, printable
from firstlight.machine.storage import whole_folder
from firstlight.record.record import Record
from firstlight.serve.export import Export, export


def write_hub_folder(record: Record, folder: Path) -> Export:
    """Write README.md (the card), model.onnx and model_classify.py into a new or empty folder.

    Raises InputError where the folder holds something, and what `export` raises; it is there whole or not at
    all.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{printable(folder)} is not empty", "Choose a new or an empty folder with --hub.")
    with whole_folder(folder) as aside:
        made = export(record, aside / "model.onnx")
        (aside / "README.md").write_text(card(record, made), encoding="utf-8", errors="backslashreplace")
    return Export(folder / made.path.name, folder / made.script.name, made.images, made.difference)


def card(record: Record, made: Export) -> str:
    """Return a model card in Markdown, with the front matter that hubs read."""
    summary, environment, data = record.summary, record.environment, record.data
    facts = environment.get("data")
    counts = facts if isinstance(facts, dict) else {}
    channels, height, width = data.shape
    accuracy = "not measured"
    if summary.test_accuracy is not None:
        accuracy = f"{summary.test_accuracy:.2%}"
        if summary.test_interval_95 is not None:
            low, high = summary.test_interval_95
            accuracy += f" (95 % interval {low:.2%} to {high:.2%})"
        accuracy += ", one run, without test-time augmentation"
    rows = {
        "recipe": record.recipe.name,
        "seed": summary.seed,
        "epochs": summary.epochs,
        "training images": counts.get("train_images"),
        "test images": counts.get("test_images"),
        "test accuracy": accuracy,
        "trained on": environment.get("hardware"),
        "precision of training": environment.get("precision"),
        "input": f"uint8 N×{channels}×{height}×{width}, unnormalised",
        "largest difference from PyTorch": f"{made.difference:.1e} on {made.images} images",
    }
    table = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None]
    name = _cell(record.recipe.name)
    return "\n".join(
        [
            "---",
            "pipeline_tag: image-classification",
            "library_name: onnx",
            "tags: [image-classification, onnx, firstlight]",
            "---",
            f"# {name}",
            "",
            "An image classifier trained by Firstlight. Normalisation and softmax are inside the file.",
            "",
            "    python model_classify.py model.onnx picture.jpg",
            "",
            "| what | value |",
            "| --- | --- |",
            *table,
            "",
            "Classes: " + ", ".join(_cell(each) for each in data.classes) + ".",
            "",
            "## Limits",
            "",
            "It calls every picture one of these classes. Its accuracy holds for pictures like the test",
            "images, read, turned upright and resized as the script does it.",
            "",
            "## Licence",
            "",
            "State the licence here before you publish: the run does not know that of its training data.",
            "",
        ]
    )


def _cell(value: object) -> str:
    """Return a value that can end neither a table's cell nor a line."""
    return printable(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
