"""``vitedge targets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json


def targets(
    name: Annotated[str | None, typer.Argument(help="Show this target, or TOML file, fully.")] = None,
    new: Annotated[
        Path | None,
        typer.Option("--new", help="Write a commented target file to start from: the one named, or a template."),
    ] = None,
    json: Json = None,
) -> None:
    """List the targets: the devices that artifacts are exported for, and the precisions each one runs.

    Your own targets are TOML files in ~/.config/vitedge/targets/, or any file given to --target.

    **Examples**

    `vitedge targets`

    `vitedge targets jetson-orin-nano`

    `vitedge targets --new board.toml`
    """
    from vitedge.core import paths
    from vitedge.formats.target import load_target
    from vitedge.reporting import catalogue_files, terminal

    if new is not None:
        typer.echo(catalogue_files.write_target(new, name))
    elif name is not None:
        terminal.emit(load_target(name), json, terminal.show_target)
    else:
        terminal.emit([load_target(known) for known in paths.names("targets")], json, terminal.show_targets)
