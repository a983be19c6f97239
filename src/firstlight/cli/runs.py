"""The verbs that ask a finished run: evaluate, predict, export, report, serve, compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from firstlight.cli.options import echo, on_data, on_machine, the_run
from firstlight.errors import InputError, printable

MOST_NAMED = 20
"""Unreadable files that are named at the end."""


@click.command()
@the_run
@on_data
@on_machine
def evaluate(run: Path, **options: Any) -> None:
    """Measure the test accuracy again, with its 95 % interval."""
    from firstlight.run import open_run

    opened = open_run(run)
    for tta, words in ((False, "without TTA"), (True, "with TTA")):
        evaluation = opened.evaluate(tta=tta, **options)
        low, high = evaluation.interval
        echo(
            f"accuracy {evaluation.accuracy:.2%} {words} (95 % interval {low:.2%} to {high:.2%}, "
            f"{len(evaluation.labels):,} images), loss {evaluation.loss:.4f}"
        )


@click.command()
@the_run
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
@click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write a table with all probabilities."
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each file.")
@click.option(
    "--sort",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Copy each file into a folder of its class in DIR, which must be new or empty.",
)
def predict(run: Path, images: Sequence[Path], csv: Path | None, as_json: bool, sort: Path | None) -> int:
    """Classify image files, and all pictures in folders: three most probable classes each.

    Files that cannot be read are named at the end, and the exit code is then 2; all others are classified.
    """
    from firstlight.data.folder_files import picture_files
    from firstlight.insight.prediction import Prediction
    from firstlight.jobs.predict import Answer, as_json_line, predict_files

    prints = as_json or (csv is None and sort is None)
    aligned = prints and not as_json
    width = max(len(printable(file)) for file in picture_files(images)) if aligned else 0

    def print_answer(answer: Answer) -> None:
        if as_json:
            click.echo(as_json_line(answer))
        elif isinstance(answer, Prediction):
            best = list(answer.probabilities.items())[:3]
            echo(f"{printable(answer.path):{width}}  " + "  ".join(f"{label} {p:.1%}" for label, p in best))

    # A bar and lines in one terminal would write over each other.
    quiet = prints and sys.stdout.isatty()
    each = print_answer if prints else None
    result = predict_files(run, images, csv=csv, sort=sort, each=each, quiet=quiet)
    if not prints:
        echo(result)
        for place in (csv, sort):
            if place is not None:
                echo(place)
    for each_file in result.unreadable[:MOST_NAMED]:
        click.echo(f"firstlight: {printable(each_file.error.message)}", err=True)
        if each_file.error.hint and len(result.unreadable) == 1:
            click.echo(printable(each_file.error.hint), err=True)
    more = len(result.unreadable) - MOST_NAMED
    if more > 0:
        click.echo(f"and {more:,} more files that cannot be read (--csv names them all)", err=True)
    return 2 if result.unreadable else 0


@click.command()
@the_run
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: model.onnx (or model-int8.onnx) in RUN; NAME-model.onnx here for pretrained:NAME.",
)
@click.option(
    "--hub",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a folder ready for a model hub instead: file, script and card; new or empty.",
)
@click.option("--int8", is_flag=True, help="Weights and activations of 8 bits; the loss is measured.")
@on_data
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures for --int8, in place of the training images.",
)
def export(run: Path, out: Path | None, hub: Path | None, **options: Any) -> None:
    """Write the network as one ONNX file: pixels in, probabilities out."""
    from firstlight.run import open_run
    from firstlight.serve.hub import write_hub_folder

    if out is not None and hub is not None:
        raise InputError("--out and --hub are two places", "Give one of them.")
    if hub is not None and any(options.values()):
        raise InputError("a folder for a hub holds the fp32 file", "Leave out --int8, or --hub.")
    opened = open_run(run)
    echo(str(opened.export(out, **options) if hub is None else write_hub_folder(opened, hub)))


@click.command()
@the_run
@on_data
def report(run: Path, data_dir: Path | None) -> None:
    """Draw pictures and report.html again, from the run folder.

    Of pretrained:NAME the page is NAME-report.html here: with its mistakes if --data-dir, or the cache, has
    the test set, else its card alone.
    """
    from firstlight.run import open_run

    page = open_run(run).report(data_dir=data_dir)
    echo(page)
    if page.note:
        echo(page.note)


@click.command()
@the_run
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="Port; 0 takes a free one.",
)
def serve(run: Path, host: str, port: int) -> None:
    """Serve a local page that classifies pictures and shows why; Ctrl-C ends it, with 0."""
    from firstlight.run import serve

    serve(run, host=host, port=port)


@click.command()
@click.argument("before", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("after", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=0), default=20, show_default=True, help="Images to list.")
def compare(before: Path, after: Path, count: int) -> None:
    """Compare two runs image by image: is one better?

    Counts images that are fixed, broken, still wrong, and tests whether the difference is more than noise.
    """
    from firstlight.run import compare

    comparison = compare(before, after)
    classes = comparison.before.classes
    echo(str(comparison))
    changes = comparison.changes(count)
    if changes:
        echo("The changed images, each with its label, then what the first and the second run said:")
    for change in changes:
        true, old, new = (classes[label] for label in (change.true, change.before, change.after))
        what = "fixed" if change.fixed else "broken"
        echo(f"{what:6}  {change.index:>6}  {change.name}  {true}: {old}, then {new}")
    left = len(comparison.fixed) + len(comparison.broken) - len(changes)
    if left:
        echo(f"and {left:,} more (--count {len(changes) + left} lists them all)")
