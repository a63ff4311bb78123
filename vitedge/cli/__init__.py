"""Options in, one call and one rendering out: the command line, one file a verb.

Nothing heavy is imported here: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from vitedge._version import __version__
from vitedge.api import resource_errors
from vitedge.cli.records import as_command
from vitedge.errors import InterruptedError_, VitedgeError

VERBS = (
    "demo",
    "doctor",
    "train",
    "import",
    "export",
    "build",
    "verify",
    "classify",
    "bench",
    "eval",
    "compare",
    "report",
    "stream",
    "inspect",
    "targets",
    "recipes",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitedge {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="VITEDGE_DEBUG")] = False,
) -> None:
    if debug:
        os.environ["VITEDGE_DEBUG"] = "1"


def application(verbs: Sequence[str] = VERBS, *, options: bool = True) -> typer.Typer:
    """The command line with these verbs; without ``options`` it's good for an overview of them alone."""
    app = typer.Typer(
        name="vitedge",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="From a Vision Transformer to a verified, measured, running classifier on every device.",
    )
    app.callback()(_options)
    for verb in verbs:
        ending = "_" if verb in ("import", "eval") else ""
        module = importlib.import_module(f"vitedge.cli.{verb}{'_' if verb == 'import' else ''}")
        function = getattr(module, f"{verb}{ending}")
        app.command(name=verb, help=function.__doc__)(as_command(function) if options else lambda: None)
    return app


def _needed(arguments: Sequence[str]) -> typer.Typer:
    """Only the verb that is called is built; an overview needs none, completion all."""
    if "_VITEDGE_COMPLETE" in os.environ:
        return application()
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    return application([verb]) if verb in VERBS else application(options=False)


def show_error(error: VitedgeError) -> None:
    """Print an error as one block on stderr."""
    sys.stderr.write(f"error: {error}\n")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise InterruptedError_(
        "stop",
        f"received {signal.Signals(number).name}; nothing half-written was left",
        "run the command again",
        signal_number=number,
    )


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that :mod:`vitedge.errors` gives."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        with resource_errors("run this command"):
            _needed(sys.argv[1:] if arguments is None else arguments)(arguments, prog_name="vitedge")
    except VitedgeError as error:
        if os.environ.get("VITEDGE_DEBUG"):
            raise
        show_error(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("VITEDGE_DEBUG"):
            raise
        show_error(
            VitedgeError(
                "run this command",
                f"a bug in vitedge: {type(error).__name__}: {error}",
                "repeat with: vitedge --debug …, and report what it prints",
            )
        )
        sys.exit(1)
    sys.exit(0)
