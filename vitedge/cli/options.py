"""Options that several verbs share, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Threads = Annotated[
    int | None, typer.Option("--threads", min=0, help="Compute threads; 0 is the machine's physical cores.")
]
Device = Annotated[str | None, typer.Option("--device", help="The runtime's own word, instead of the target's.")]
Json = Annotated[str | None, typer.Option("--json", help="Write JSON to a file, or to stdout with -.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
NoBuild = Annotated[
    bool, typer.Option("--no-build", help="Refuse where a fitting engine is missing, instead of building it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
ResultOut = Annotated[Path | None, typer.Option("--out", "-o", help="Write the result with its raw data.")]
