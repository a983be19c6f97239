"""Options that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from firstlight.errors import InputError, printable


def all_of(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


on_data = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder (or archive) that holds the data; never downloads.",
)
on_machine = all_of(
    click.option(
        "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or mps."
    ),
    click.option(
        "--precision", default="auto", show_default=True, metavar="NAME", help="auto, fp32, bf16 or fp16."
    ),
)
on_recipe = all_of(
    on_data,
    click.option("--epochs", type=int, metavar="N", help="Epochs; the schedule shrinks in proportion."),
    click.option("--seed", type=int, metavar="S", help="Seed of weights, order and augmentation."),
    on_machine,
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a setting, such as peak_lr=0.4; repeatable. `firstlight recipes NAME` lists the keys.",
    ),
)
on_out = click.option(
    "--out", type=click.Path(path_type=Path), metavar="RUN", help="Run folder to make; must not exist yet."
)
on_determinism = click.option(
    "--determinism",
    default="draws",
    show_default=True,
    metavar="LEVEL",
    help="draws: same order and augmentation everywhere; bits: same arithmetic too.",
)
on_checkpoints = click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="N",
    help="Checkpoint interval within an epoch; there is always one at its end.",
)
the_run = click.argument("run", type=click.Path(path_type=Path))


def echo(text: object) -> None:
    """Print lines in which names of files and classes, which may hold any byte, are escaped."""
    click.echo("\n".join(map(printable, str(text).split("\n"))))


def recipe_of(name: str, epochs: int | None, seed: int | None, pairs: Sequence[str], data: Any) -> Any:
    """Return the recipe that the words of a shell ask for; `--set` pairs are text."""
    from firstlight.recipes import resolve

    text = dict(pairs_of(pairs))
    return resolve(name, data_dir=data, epochs=epochs, seed=seed, text=text, log=echo)


def pairs_of(pairs: Sequence[str]) -> list[tuple[str, str]]:
    """Split each KEY=VALUE of `--set`."""
    split = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--set takes KEY=VALUE, not {pair!r}", "For example: --set peak_lr=0.4")
        split.append((key.strip(), value.strip()))
    return split
