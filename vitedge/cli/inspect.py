"""``vitedge inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A model folder, an artifact, a result, a folder of engines, or an ONNX file.")
    ],
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show every layer, class and file, however many.")
    ] = False,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands", help="Print trtexec and Polygraphy command lines for the graph of an artifact for TensorRT."
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Describe a file or folder: classes, preprocessing, precision by layer, sizes, digests, origin, licence.

    The digests of models and artifacts are checked as well.

    **Examples**

    `vitedge inspect artifact/`

    `vitedge inspect classifier.onnx --json -`

    `vitedge inspect artifact/ --commands`
    """
    from vitedge import api
    from vitedge.reporting import terminal

    if commands:
        terminal.emit(api.commands(path), json, terminal.show_commands)
        return
    terminal.emit(api.inspect(path, everything=everything), json, terminal.show_inspection)
