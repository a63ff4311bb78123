"""``vitedge classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Device, Json, NoBuild, Quiet, Threads
from vitedge.runtimes.options import TOP_K


def classify(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    picture: Annotated[list[str], typer.Argument(help="Pictures, or folders and archives of them.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=100, help="Number of classes to show.")] = TOP_K,
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Classify pictures with an artifact, in its runtime on this machine; exit with 3 when some can't be read.

    **Examples**

    `vitedge classify artifact/ photo.jpg`

    `vitedge classify artifact/ holiday/ --top-k 1 --json labels.json`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import measured, terminal
    from vitedge.reporting.outcome import refuse_unreadable
    from vitedge.runtimes.options import OpenOptions

    options = OpenOptions(device=device, threads=threads, build=not no_build)
    with bars(quiet=quiet) as progress:
        answers = api.classify(artifact, picture, options, top_k=top_k, progress=progress)
    terminal.emit(answers, json, measured.show_classified)
    refuse_unreadable(answers)
