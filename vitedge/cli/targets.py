"""``vitedge targets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json


def targets(
    name: Annotated[str | None, typer.Argument(help="Name or TOML file of a target to show in full.")] = None,
    new: Annotated[
        Path | None,
        typer.Option(
            "--new", help="Target file to write and start from: a copy of the target that is named, or a template."
        ),
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
    from vitedge import api
    from vitedge.reporting import terminal

    if new is not None:
        typer.echo(api.write_target(new, name))
    elif name is not None:
        terminal.emit(api.target(name), json, terminal.show_target)
    else:
        terminal.emit(api.targets(), json, terminal.show_targets)
