"""Options that several verbs share, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.core.options import TIME, parse_time

OUTPUT, RUNTIME = "Output", "Runtime"


def time_option(name: str, help: str, panel: str | None = None) -> Any:
    """Return an option that takes ``90``, ``90s``, ``10m`` or ``1h``, and gives seconds."""
    return typer.Option(
        name, parser=lambda value: parse_time(str(value)), metavar=f"<{TIME}>", help=help, rich_help_panel=panel
    )


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=0,
        help="Number of compute threads; 0 uses all physical cores.",
        rich_help_panel=RUNTIME,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Device, by its name in the runtime [default: the target's].", rich_help_panel=RUNTIME
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write JSON to a file; without a file, to stdout.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=OUTPUT)]
NoBuild = Annotated[
    bool,
    typer.Option(
        "--no-build",
        help="Report an error where an engine is missing, instead of building it.",
        rich_help_panel=RUNTIME,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, and no next step.", rich_help_panel=OUTPUT)
]
ResultOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File to write the result to, with its raw data.", rich_help_panel=OUTPUT),
]
