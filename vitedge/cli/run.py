"""``vitedge run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Quiet


def run(
    step: Annotated[list[str] | None, typer.Argument(help="Names of steps [default: all of them].")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Step to begin with; those before it are left out.")
    ] = None,
    file: Annotated[Path, typer.Option("--file", "-f", help="File with the steps.")] = Path("vitedge.toml"),
    quiet: Quiet = False,
) -> None:
    """Run the steps of a project, one after the other, as its vitedge.toml names them; the first failure ends it.

    `vitedge new` writes such a file. A step runs in a process of its own, in the file's folder; the exit code is that
    of the step that failed.

    **Examples**

    `vitedge run`

    `vitedge run export verify`

    `vitedge run --from export`
    """
    from vitedge import api
    from vitedge.errors import UsageError

    if step and start:
        raise UsageError("run steps", "steps were named one by one, and a step to begin with", "leave out --from")

    def say(words: str) -> None:
        if not quiet:
            sys.stderr.write(f"· {words}\n")

    api.run_project(step or (), start=start, file=file, say=say)
