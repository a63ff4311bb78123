"""``vitedge label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import Json


def label(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            help="Class names: a folder of class folders (sorted), a text file (a name a line, or 0 name), JSON (a "
            "list, names by id, or a config.json with id2label), or imagenet-1k.",
        ),
    ],
    json: Json = None,
) -> None:
    """Name the classes of a model folder, in place, without importing it again.

    Artifacts that were exported before keep the names that they have: export again.

    **Examples**

    `vitedge label model/ --labels train/`

    `vitedge label model/ --labels names.txt`
    """
    from vitedge import api
    from vitedge.reporting import terminal

    terminal.emit([api.summary(api.label(model, labels))], json, terminal.show_models)
