"""``vitedge report``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vitedge.cli.options import OUTPUT, Json, Overwrite


class Format(str, Enum):
    """The formats of a report."""

    html = "html"
    md = "md"
    csv = "csv"


def report(
    source: Annotated[list[Path], typer.Argument(help="Results: files, or folders of them; several are merged.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write [default: report.html; Markdown and CSV go to stdout].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format", "-f", help="Format of the report [default: by the name of --out].", rich_help_panel=OUTPUT
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Labelled images that `vitedge eval` was given, to show those whose labels differ."
        ),
    ] = None,
    json: Json = None,
    overwrite: Overwrite = False,
) -> None:
    """Recommend the artifact to deploy, with the reasons and all figures: one HTML file, Markdown, or CSV.

    Results of several runs and machines become one report; rows measured under different rules aren't ranked together.

    **Examples**

    `vitedge report result.json --out report.html`

    `vitedge report results/ --format md >> README.md`
    """
    from vitedge import api
    from vitedge.reporting import delivery

    wanted = format.value if format else None
    if out is None and json == "-":
        wanted = "json"
    elif out is None and wanted in (None, "html"):
        out = Path("report.html")
    report = api.report(source, out=out, format=wanted, data=data, overwrite=overwrite)
    delivery.show_report(report, json)
