"""``vitedge demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.benchmarking.options import DEMO_SECONDS
from vitedge.cli.options import OUTPUT, Json, Quiet, time_option


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", rich_help_panel=OUTPUT)] = Path(
        "vitedge-demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older demo folder.", rich_help_panel=OUTPUT)
    ] = False,
    duration: Annotated[
        float, time_option("--duration", "Shortest latency measurement of each artifact: 3, 90s, 10m.")
    ] = DEMO_SECONDS,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Take the embedded model through the whole pipeline: export, verify, measure, evaluate, classify, report.

    Needs no network and no torch; takes a minute or two on two cores.

    **Examples**

    `vitedge demo`

    `vitedge demo --out /tmp/demo --overwrite`
    """
    import sys

    from vitedge import api
    from vitedge.core.progress import bars
    from vitedge.reporting import terminal
    from vitedge.reporting.summary import show_summary

    def say(words: str) -> None:
        if not quiet:
            sys.stderr.write(f"· {words}\n")

    with bars(quiet=quiet) as progress:
        outcome = api.run_demo(out, overwrite=overwrite, duration_s=duration, progress=progress, say=say)
    terminal.emit(outcome.result, json, lambda result: show_summary(result, outcome.shown, outcome.out))
