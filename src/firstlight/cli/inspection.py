"""The verbs that look around: recipes, doctor."""

from __future__ import annotations

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
