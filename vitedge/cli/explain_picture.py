"""``vitedge explain-picture``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import OUTPUT, Device, Json, NoBuild, Overwrite, Quiet, Threads


def explain_picture(
    source: Annotated[
        Path,
        typer.Argument(help="A model folder (attention rollout and occlusion) or an artifact (occlusion alone)."),
    ],
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="PNG file to draw the maps into [default: none is drawn].", rich_help_panel=OUTPUT
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Name of the class to explain [default: the most probable one].")
    ] = None,
    threads: Threads = None,
    device: Device = None,
    no_build: NoBuild = False,
    json: Json = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Show which patches of a picture an answer came from.

    Attention rollout follows the attention from the class token back to the patches, through all blocks. Occlusion
    hides one patch after another and shows by how much the probability of the class falls.

    **Examples**

    `vitedge explain-picture model/ photo.jpg --out map.png`

    `vitedge explain-picture artifact/ photo.jpg --class frog --json -`
    """
    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import measured, terminal
    from vitedge.runtimes.options import OpenOptions

    options = OpenOptions(device=device, threads=threads, build=not no_build)
    with bars(quiet=quiet) as progress:
        explanation = api.explain_picture(
            source, picture, out, options, class_name=class_name, overwrite=overwrite, progress=progress
        )
    terminal.emit(explanation, json, measured.show_picture_explanation)
