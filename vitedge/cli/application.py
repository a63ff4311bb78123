"""The command line as an application of typer; a verb's file is imported when the verb is called."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from vitedge._version import __version__
from vitedge.cli.next_steps import say_next
from vitedge.cli.parsing import Verb, Verbs
from vitedge.cli.records import as_command

PREPARE, EXPORT, MEASURE, RUN, FLEET, LOOK = "Prepare", "Export", "Measure", "Run", "Fleet", "Look"
#: Every verb and the step that it belongs to: its group in ``vitedge --help``. A verb is a line here and a file beside.
STEPS = {
    "new": PREPARE,
    "run": PREPARE,
    "train": PREPARE,
    "import": PREPARE,
    "label": PREPARE,
    "shrink": PREPARE,
    "export": EXPORT,
    "build": EXPORT,
    "verify": MEASURE,
    "bench": MEASURE,
    "eval": MEASURE,
    "compare": MEASURE,
    "report": MEASURE,
    "classify": RUN,
    "explain-picture": RUN,
    "stream": RUN,
    "fleet": FLEET,
    "demo": LOOK,
    "doctor": LOOK,
    "inspect": LOOK,
    "targets": LOOK,
    "recipes": LOOK,
}
VERBS = tuple(STEPS)


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
    """Build the command line with these verbs; without ``options`` it serves only for an overview of them."""
    app = typer.Typer(
        name="vitedge",
        cls=Verbs,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="From a Vision Transformer to a verified, measured, running classifier on every device.",
    )
    app.callback()(_options)
    for verb in verbs:
        name = verb.replace("-", "_")
        ending = "_" if verb in ("import", "eval") else ""
        module = importlib.import_module(f"vitedge.cli.{name}{'_' if verb == 'import' else ''}")
        function = getattr(module, f"{name}{ending}")
        if options and hasattr(module, "application"):
            app.add_typer(module.application(), name=verb, rich_help_panel=STEPS[verb])
            continue
        command = as_command(function, then=partial(say_next, verb)) if options else lambda: None
        app.command(name=verb, cls=Verb, help=function.__doc__, rich_help_panel=STEPS[verb])(command)
    return app


def needed(arguments: Sequence[str]) -> typer.Typer:
    """Return the verbs to build: the one that is called, none for an overview, all for completion."""
    if "_VITEDGE_COMPLETE" in os.environ:
        return application()
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    return application([verb]) if verb in VERBS else application(options=False)
