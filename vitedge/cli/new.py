"""``vitedge new``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Quiet


def new(
    project: Annotated[Path, typer.Argument(help="Folder to write; its name is the project's.")],
    quiet: Quiet = False,
) -> None:
    """Start a project: a folder with its steps in vitedge.toml, a place for pictures, a CI workflow, a systemd unit.

    `vitedge run` runs the steps: train, export, verify, bench, report.

    **Examples**

    `vitedge new garden`

    `vitedge new garden && cp -r photos/* garden/data/ && cd garden && vitedge run`
    """
    from vitedge import api

    out = api.new_project(project)
    print(out)
    if not quiet:
        folder = shlex.quote(str(out))
        sys.stderr.write(
            f"next: put one folder of pictures a class into {folder}/data, then: cd {folder} && vitedge run\n"
        )
