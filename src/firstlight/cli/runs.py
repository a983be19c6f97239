"""The verbs that ask a finished run: evaluate, predict, export, report, serve, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from firstlight.cli.options import echo, on_data, on_machine, the_run
from firstlight.errors import printable


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
def predict(run: Path, images: Sequence[Path]) -> None:
    """Classify image files: three most probable classes each."""
    from firstlight.run import open_run

    predictions = open_run(run).predict(images)
    names = [printable(prediction.path) for prediction in predictions]
    width = max(map(len, names))
    for name, prediction in zip(names, predictions, strict=True):
        best = list(prediction.probabilities.items())[:3]
        echo(f"{name:{width}}  " + "  ".join(f"{label} {p:.1%}" for label, p in best))


@click.command()
@the_run
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Default: model.onnx in RUN.")
def export(run: Path, out: Path | None) -> None:
    """Write the network as one ONNX file: pixels in, probabilities out."""
    from firstlight.run import open_run

    echo(str(open_run(run).export(out)))


@click.command()
@the_run
def report(run: Path) -> None:
    """Draw pictures and report.html again, from the run folder."""
    from firstlight.run import open_run

    echo(open_run(run).report())


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
