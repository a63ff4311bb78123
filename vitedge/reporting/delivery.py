"""Turn result files into a report file, for ``vitedge report``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitedge.core.files import JSON, FileKind, refuse_existing, write_atomic
from vitedge.core.schema import encode_json
from vitedge.data.images import ImageSet
from vitedge.errors import UsageError, nearest
from vitedge.formats.result import Result

FORMATS = {"html": (".html", ".htm"), "md": (".md", ".markdown"), "csv": (".csv",)}

#: How each format's reports begin; a table alone makes no report of a README.
KINDS = {
    "html": FileKind("an HTML page", lambda content: content[:15].lower().startswith((b"<!doctype html", b"<html"))),
    "md": FileKind(
        "a report", lambda content: content.startswith((b"**", b"| group |")) and b"| artifact | MB |" in content
    ),
    "csv": FileKind("a table of results", lambda content: b"artifact,target,runtime" in content.partition(b"\n")[0]),
    "json": JSON,
}


@dataclass(frozen=True)
class Report:
    """A report, and the results that it's about."""

    format: str  # a key of :data:`FORMATS`, or "json"
    content: bytes
    results: tuple[Result, ...]
    out: Path | None  # the file that was written


def report(
    sources: Sequence[str | Path | Result],
    *,
    out: Path | None = None,
    format: str | None = None,
    data: str | None = None,
    overwrite: bool = False,
) -> Report:
    """Read results, and turn them into HTML, Markdown or CSV.

    Args:
        sources: result files, folders of them, and results.
        out: the file to write; None writes none.
        format: a key of :data:`FORMATS`, or ``json`` for the rows alone; without it, by the name of ``out``, else HTML.
        data: the labelled images that accuracy was measured on, or the name of an embedded set.
        overwrite: permit replacing ``out``.

    Raises:
        UsageError: nothing to read, an existing output, a name that tells no format, or other pictures.
        ArtifactError: not a result, or written by a newer version.
        NotInstalledError: HTML without jinja2 or matplotlib.
        ResourceError: the file can't be written.
    """
    from vitedge.data import embedded
    from vitedge.reporting import rows

    chosen = _format(out, format)
    if out is not None:
        refuse_existing(out, KINDS[chosen], overwrite=overwrite, action=f"write the report {out}")
    results = rows.read(sources)
    images = None if data is None else embedded.open_images(data, action=f"show pictures of {data}")
    content = _render(chosen, results, images)
    if out is not None:
        write_atomic(out, content, f"write the report {out}")
    return Report(chosen, content, tuple(results), out)


def show_report(report: Report, json: str | None) -> None:
    """Print the rows as JSON where ``json`` says; the decisions where a file was written, else the report itself."""
    from vitedge.reporting import csv, terminal

    if json is not None and report.format != "json":
        terminal.emit(csv.records(report.results), json, lambda records: None)
    if report.out is None:
        sys.stdout.write(report.content.decode())
    elif json != "-":
        tell(report.results, report.out)


def _format(out: Path | None, format: str | None) -> str:
    if format is not None or out is None:
        return format or "html"
    for name, suffixes in FORMATS.items():
        if out.suffix.lower() in suffixes:
            return name
    raise UsageError(
        f"write the report {out}",
        f"its name tells no format{nearest(out.suffix.lstrip('.'), FORMATS)}",
        "add: --format html|md|csv",
    )


def _render(format: str, results: Sequence[Result], images: ImageSet | None) -> bytes:
    from vitedge.reporting import csv, html, markdown

    makers: dict[str, Callable[[], bytes]] = {
        "html": lambda: html.render(results, images=images).encode(),
        "md": lambda: markdown.render(results).encode(),
        "csv": lambda: csv.render(results).encode(),
        "json": lambda: encode_json(csv.records(results)),
    }
    return makers[format]()


def tell(results: Sequence[Result], out: Path) -> None:
    """Print the decisions, and the path of the report."""
    from rich.console import Group

    from vitedge.reporting import rows, terminal
    from vitedge.reporting.decision import decide

    parts = [
        Group(
            terminal.text(f"{decision.headline}  (on {decision.machine})", terminal.LOUD),
            *(terminal.indented(reason) for reason in decision.reasons),
            *(terminal.indented(caveat, terminal.QUIET) for caveat in decision.caveats),
        )
        for decision in decide(rows.lines(results))
    ]
    terminal.show(*parts, terminal.text(f"wrote {out}", terminal.QUIET))
