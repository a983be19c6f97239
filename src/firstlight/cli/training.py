"""The verbs that train: train, sweep, find-lr, suspects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from firstlight.cli.options import (
    echo,
    on_checkpoints,
    on_data,
    on_determinism,
    on_machine,
    on_out,
    on_recipe,
    pairs_of,
    recipe_of,
    the_run,
)
from firstlight.errors import InputError


@click.command()
@click.argument("recipe")
@on_recipe
@click.option("--seeds", type=int, metavar="N", help="Train N seeds, from --seed on; print mean and spread.")
@on_out
@on_determinism
@click.option("--resume", is_flag=True, help="Continue an unfinished run; start a new one if there is none.")
@on_checkpoints
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


@click.command()
@click.argument("recipe")
@on_recipe
@click.option(
    "--seeds",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Seeds of each setting, from --seed on.",
)
@click.option("--random", type=int, metavar="N", help="Take N settings of the grid, drawn at random.")
@click.option(
    "--on",
    default="local",
    show_default=True,
    metavar="WHERE",
    help="local: one run after the other; ray: on the cluster of RAY_ADDRESS, or on this machine's cores.",
)
@click.option(
    "--threads",
    type=int,
    metavar="N",
    help="Threads of each run; on Ray, the cores it asks for (1 by default).",
)
@click.option(
    "--gpus", type=float, default=0, metavar="N", help="GPUs that each run asks for on Ray; 0.5 shares one."
)
@on_out
@on_determinism
@on_checkpoints
def sweep(recipe: str, settings: Sequence[str], **options: Any) -> None:
    """Train a grid of settings under several seeds, here or on a cluster.

    Values are separated by commas: --set peak_lr=0.2,0.4; one that holds commas itself stands in brackets:
    --set sides=(24,32),(16,32). The best setting is chosen by validation, never by test. The same command
    finishes what is missing.
    """
    from firstlight.jobs.grid import split_values
    from firstlight.jobs.sweep import sweep

    axes: dict[str, list[str]] = {}
    for key, value in pairs_of(settings):
        if key in axes:
            raise InputError(f"--set {key} is given twice", f"Separate its values by commas: {key}=A,B")
        axes[key] = split_values(value)
    sweep(recipe, axes, **options)


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
