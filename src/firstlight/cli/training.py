"""The verbs that train: train, find-lr, suspects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from firstlight.cli.options import echo, on_data, on_machine, on_out, on_recipe, recipe_of, the_run


@click.command()
@click.argument("recipe")
@on_recipe
@click.option("--seeds", type=int, metavar="N", help="Train N seeds, from --seed on; print mean and spread.")
@on_out
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

    chosen = recipe_of(recipe, epochs, seed, settings, options["data_dir"])
    train(chosen, resume="auto" if resume else False, **options)


@click.command("find-lr")
@click.argument("recipe")
@on_recipe
def find_lr(
    recipe: str, epochs: int | None, seed: int | None, settings: Sequence[str], **options: Any
) -> None:
    """Run the learning-rate finder alone; write nothing."""
    from firstlight.jobs.find_lr import find_lr

    finding = find_lr(recipe_of(recipe, epochs, seed, settings, options["data_dir"]), **options)
    echo(str(finding))
    echo(f"{finding.extent}, {finding.seconds:.0f} s")


@click.command()
@the_run
@on_data
@click.option(
    "--folds", type=int, default=4, show_default=True, metavar="N", help="Networks to train, on (N-1)/N each."
)
@on_machine
def suspects(run: Path, **options: Any) -> None:
    """Find label errors in the training set.

    Trains the recipe again on parts of the set, and judges the rest with networks that did not see it.
    """
    from firstlight.jobs.suspects import suspects
    from firstlight.record.suspects import SUSPECTS_TABLE
    from firstlight.run import open_run

    opened = open_run(run)
    errors, classes = suspects(opened, **options), opened.data.classes
    interval = "" if errors.interval is None else " (95 % interval {:,} to {:,})".format(*errors.interval)
    total = f"{len(errors.labels):,} labels"
    if errors.count:
        echo(f"about {errors.count:,} of {total} may be wrong{interval}; the most doubtful:")
    else:
        echo(f"none of {total} looks wrong{interval}")
    rows = list(zip(errors.indices.tolist(), errors.names, errors.suggested.tolist(), strict=True))
    for index, name, suggested in rows[: min(errors.count, 20)]:
        label = classes[int(errors.labels[index])]
        echo(f"{index:>6}  {name}  labelled {label}, looks like {classes[suggested]}")
    echo(f"the list   {opened.path / SUSPECTS_TABLE}")
