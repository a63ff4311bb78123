"""``vitedge verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Device, Json, NoBuild, Threads


def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    json: Json = None,
) -> None:
    """Test on this machine that an artifact is unchanged, and computes the exported results.

    The checks cover digests, preprocessing, outputs on golden pictures, the precision in the executed graph, versions
    and options. Where the runtime can't run on this machine, the checks for the device stay undecided (–).

    **Examples**

    `vitedge verify artifact/`

    `vitedge verify artifact/ --json - > checks.json`
    """
    from vitedge import api
    from vitedge.errors import InvalidResultError
    from vitedge.reporting import measured, terminal
    from vitedge.runtimes.options import OpenOptions

    checks = api.verify(artifact, OpenOptions(device=device, threads=threads, build=not no_build))
    terminal.emit(checks, json, measured.show_checks)
    wrong = [check.name for check in checks if check.ok is False]
    if wrong:
        raise InvalidResultError(
            f"verify the artifact {artifact}",
            f"failed: {', '.join(wrong)}",
            "don't deploy it; export it again for this device, or update the runtime",
        )
