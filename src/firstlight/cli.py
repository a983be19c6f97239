"""The same verbs in a shell. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from firstlight import __version__
from firstlight.errors import InputError, RunFailed, nearest


class Verbs(click.Group):
    """A group of commands that suggests the nearest verb."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            raise InputError(f"there is no command {name!r}", nearest(name, list(self.commands)))
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: firstlight train shapes.demo",
)
@click.version_option(__version__, prog_name="firstlight")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def firstlight(debug: bool) -> None:
    """Train a small image classifier fast, and see why it is wrong."""


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


_on_data = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder (or archive) that holds the data; never downloads.",
)
_on_machine = _options(
    click.option(
        "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or mps."
    ),
    click.option(
        "--precision", default="auto", show_default=True, metavar="NAME", help="auto, fp32, bf16 or fp16."
    ),
)
_on_recipe = _options(
    _on_data,
    click.option("--epochs", type=int, metavar="N", help="Epochs; the schedule shrinks in proportion."),
    click.option("--seed", type=int, metavar="S", help="Seed of weights, order and augmentation."),
    _on_machine,
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a setting, such as peak_lr=0.4; repeatable. `firstlight recipes NAME` lists the keys.",
    ),
)
_on_out = click.option(
    "--out", type=click.Path(path_type=Path), metavar="RUN", help="Run folder to make; must not exist yet."
)
_the_run = click.argument("run", type=click.Path(path_type=Path))


def _recipe(name: str, epochs: int | None, seed: int | None, pairs: Sequence[str], data: Any) -> Any:
    from firstlight.recipes import resolve

    text = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--set takes KEY=VALUE, not {pair!r}", "For example: --set peak_lr=0.4")
        text[key.strip()] = value.strip()
    return resolve(name, data_dir=data, epochs=epochs, seed=seed, text=text, log=click.echo)


@firstlight.command()
@click.argument("recipe")
@_on_recipe
@click.option("--seeds", type=int, metavar="N", help="Train N seeds, from --seed on; print mean and spread.")
@_on_out
@click.option(
    "--determinism",
    default="draws",
    show_default=True,
    metavar="LEVEL",
    help="draws: same order and augmentation everywhere; bits: same arithmetic too.",
)
@click.option("--resume", is_flag=True, help="Continue an unfinished run; start a new one if there is none.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="N",
    help="Checkpoint interval within an epoch; there is always one at its end.",
)
def train(
    recipe: str,
    epochs: int | None,
    seed: int | None,
    settings: Sequence[str],
    resume: bool,
    **options: Any,
) -> None:
    """Train a recipe, or on your own folder, archive or CSV: find rates, train, evaluate, draw.

    Writes the run folder runs/RECIPE, with a number behind it when that is taken.
    """
    from firstlight.jobs.train import train

    chosen = _recipe(recipe, epochs, seed, settings, options["data_dir"])
    train(chosen, resume="auto" if resume else False, **options)


@firstlight.command("find-lr")
@click.argument("recipe")
@_on_recipe
def find_lr(
    recipe: str, epochs: int | None, seed: int | None, settings: Sequence[str], **options: Any
) -> None:
    """Run the learning-rate finder alone; write nothing."""
    from firstlight.jobs.find_lr import find_lr

    finding = find_lr(_recipe(recipe, epochs, seed, settings, options["data_dir"]), **options)
    click.echo(str(finding))
    click.echo(f"{finding.extent}, {finding.seconds:.0f} s")


@firstlight.command()
@_the_run
@_on_data
@_on_machine
def evaluate(run: Path, **options: Any) -> None:
    """Measure the test accuracy again, with its 95 % interval."""
    from firstlight.run import open_run

    opened = open_run(run)
    for tta, words in ((False, "without TTA"), (True, "with TTA")):
        evaluation = opened.evaluate(tta=tta, **options)
        low, high = evaluation.interval
        click.echo(
            f"accuracy {evaluation.accuracy:.2%} {words} (95 % interval {low:.2%} to {high:.2%}, "
            f"{len(evaluation.labels):,} images), loss {evaluation.loss:.4f}"
        )


@firstlight.command()
@_the_run
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE…")
def predict(run: Path, images: Sequence[Path]) -> None:
    """Classify image files: three most probable classes each."""
    from firstlight.run import open_run

    predictions = open_run(run).predict(images)
    width = max(len(str(prediction.path)) for prediction in predictions)
    for prediction in predictions:
        best = list(prediction.probabilities.items())[:3]
        click.echo(f"{prediction.path!s:{width}}  " + "  ".join(f"{name} {p:.1%}" for name, p in best))


@firstlight.command()
@_the_run
def report(run: Path) -> None:
    """Draw pictures and report.html again, from the run folder."""
    from firstlight.run import open_run

    click.echo(open_run(run).report())


@firstlight.command()
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
    click.echo(str(comparison))
    changes = comparison.changes(count)
    if changes:
        click.echo("The changed images, each with its label, then what the first and the second run said:")
    for change in changes:
        true, old, new = (classes[label] for label in (change.true, change.before, change.after))
        what = "fixed" if change.fixed else "broken"
        click.echo(f"{what:6}  {change.index:>6}  {change.name}  {true}: {old}, then {new}")
    left = len(comparison.fixed) + len(comparison.broken) - len(changes)
    if left:
        click.echo(f"and {left:,} more (--count {len(changes) + left} lists them all)")


@firstlight.command()
@_the_run
@_on_data
@click.option(
    "--folds", type=int, default=4, show_default=True, metavar="N", help="Networks to train, on (N-1)/N each."
)
@_on_machine
def suspects(run: Path, **options: Any) -> None:
    """Find label errors in the training set.

    Trains the recipe again on parts of the set, and judges the rest with networks that did not see it.
    """
    from firstlight.jobs.suspects import suspects
    from firstlight.record.suspects import SUSPECTS_TABLE
    from firstlight.run import open_run

    opened = open_run(run)
    errors, classes = suspects(opened, **options), opened.data.classes
    if errors.count:
        click.echo(f"about {errors.count:,} of {len(errors.labels):,} labels look wrong; the most doubtful:")
    else:
        click.echo(f"none of {len(errors.labels):,} labels looks wrong for certain")
    rows = list(zip(errors.indices.tolist(), errors.names, errors.suggested.tolist(), strict=True))
    for index, name, suggested in rows[: min(errors.count, 20)]:
        label = classes[int(errors.labels[index])]
        click.echo(f"{index:>6}  {name}  labelled {label}, looks like {classes[suggested]}")
    click.echo(f"the list   {opened.path / SUSPECTS_TABLE}")


@firstlight.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or show one with all its settings."""
    from firstlight.recipes import description, named, table

    purposes = table()
    if name is None:
        width = max(map(len, purposes))
        lines = [f"{each:{width}}  {purpose}" for each, purpose in purposes.items()]
    else:
        lines = description(named(name), purposes[name])
    for line in lines:
        click.echo(line)


@firstlight.command()
@_on_data
def doctor(data_dir: Path | None) -> int:
    """Check installation, machine, data, disk and exact resume.

    Kills a tiny run, resumes it, and compares the bits with those of a run that was left alone.
    """
    from firstlight.jobs.doctor import examine, table

    checks = list(examine(data_dir))
    click.echo(table(checks))
    bad = [check.name for check in checks if check.good is False]
    click.echo(f"to mend: {', '.join(bad)}" if bad else "all is well")
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exit with 2 for bad input, 1 for a failed run, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # `--debug` helps wherever it stands.
    debug = "--debug" in words
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")  # a console may lack ✓ and ×
    words = [word for word in words if word != "--debug"]
    try:
        sys.exit(firstlight.main(words, prog_name="firstlight", standalone_mode=False) or 0)
    except (click.ClickException, InputError, RunFailed, KeyboardInterrupt, click.Abort) as error:
        if debug:
            raise
        match error:
            case click.ClickException():
                _fail(error.format_message(), "", 2)
            case InputError() | RunFailed():
                _fail(error.message, error.hint, 2 if isinstance(error, InputError) else 1)
            case _:
                _fail("stopped", "", 130)


def _fail(message: str, hint: str, code: int) -> NoReturn:
    click.echo(f"firstlight: {message}", err=True)
    if hint:
        click.echo(hint, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
