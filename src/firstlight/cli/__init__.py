"""The same verbs in a shell. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from firstlight import __version__
from firstlight.cli.inspection import check, doctor, recipes
from firstlight.cli.runs import compare, evaluate, export, predict, report, serve
from firstlight.cli.training import find_lr, suspects, sweep, train
from firstlight.errors import InputError, RunFailed, nearest, printable
from firstlight.machine.storage import lend_matplotlib_a_folder
from firstlight.machine.waiting import let_threads_sleep

VERBS = (
    *(train, sweep, find_lr, evaluate, predict, report, compare),
    *(export, serve, suspects, recipes, check, doctor),
)


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


for _verb in VERBS:
    firstlight.add_command(_verb)


_EXPECTED = (
    *(click.ClickException, click.Abort, InputError, RunFailed),
    *(KeyboardInterrupt, OSError, MemoryError),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exit with 2 for bad input, 1 for a failed run, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # `--debug` helps wherever it stands.
    debug = "--debug" in words
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")  # a console may lack ✓ and ×
    words = [word for word in words if word != "--debug"]
    let_threads_sleep()
    lend_matplotlib_a_folder()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        sys.exit(firstlight.main(words, prog_name="firstlight", standalone_mode=False) or 0)
    except BrokenPipeError:  # who read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except _EXPECTED as error:
        if debug:
            raise
        match error:
            case click.ClickException():
                _fail(error.format_message(), "", 2)
            case InputError() | RunFailed():
                _fail(error.message, error.hint, 2 if isinstance(error, InputError) else 1)
            case OSError():
                what = f"{error.filename}: " if error.filename else ""
                _fail(f"{what}{error.strerror or error}", "", 2)
            case MemoryError():
                _fail("out of memory", "Close other programs, or give it less at once.", 1)
            case _:
                _fail("stopped", "", 130)


def _interrupt(number: int, frame: Any) -> None:
    """Do what Ctrl-C does, and end at once while torch is loading, when nothing has been written yet.

    torch loads NumPy from C++ and drops what that raises. The command would go on after Ctrl-C, with half of
    NumPy, to a traceback.
    """
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False):  # set by Python's import system until the module is whole
        click.echo("firstlight: stopped", err=True)
        os._exit(130)
    signal.default_int_handler(number, frame)


def _fail(message: str, hint: str, code: int) -> NoReturn:
    click.echo(f"firstlight: {printable(message)}", err=True)
    if hint:
        click.echo(printable(hint), err=True)
    sys.exit(code)
