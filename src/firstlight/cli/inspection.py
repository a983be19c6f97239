"""The verbs that look around: recipes, check, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from firstlight.cli.options import on_data


@click.command()
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


@click.command()
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--strict", is_flag=True, help="Exit with 1 where something is wrong.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Page to write, outside the folder of pictures; else runs/check-NAME/check.html.",
)
def check(photos: Path, as_json: bool, strict: bool, out: Path | None) -> int:
    """Look for what is wrong with a folder of pictures: files, labels and copies."""
    from firstlight.data.check import lines
    from firstlight.jobs.check import check

    result = check(photos, out=out)
    click.echo(json.dumps(result.as_json(), indent=2) if as_json else "\n".join(lines(result)))
    return 1 if strict and result.is_wrong else 0


@click.command()
@on_data
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
