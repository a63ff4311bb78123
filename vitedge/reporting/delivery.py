"""From result files to a report file: what ``vitedge report`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vitedge.core.files import write_atomic
from vitedge.data.images import ImageSet
from vitedge.errors import UsageError, nearest
from vitedge.formats.result import Result

FORMATS = {"html": (".html", ".htm"), "md": (".md", ".markdown"), "csv": (".csv",)}


def report(
    sources: Sequence[str | Path],
    *,
    out: Path | None = None,
    format: str | None = None,
    data: str | None = None,
    json: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read results, and write them as HTML, Markdown or CSV.

    Args:
        sources: result files, and folders of them.
        out: the file; without it HTML goes to ``report.html``, the others to stdout.
        format: a key of :data:`FORMATS`; without it, by the name of ``out``.
        data: the labelled images that accuracy was measured on, or the name of an embedded set.
        json: write the rows as JSON there; with ``-`` to stdout, and nothing else unless ``out`` is given.
        overwrite: permit replacing ``out``.

    Raises:
        UsageError: nothing to read, an existing output, a name that tells no format, or other pictures.
        ArtifactError: not a result, or written by a newer version.
        NotInstalledError: HTML without jinja2 or matplotlib.
        ResourceError: the file can't be written.
    """
    from vitedge.data import embedded
    from vitedge.reporting import csv, rows, terminal

    wanted = _format(out, format)
    if wanted == "html" and out is None and json != "-":
        out = Path("report.html")
    if out is not None:
        _refuse_existing(out, overwrite=overwrite)
    results = rows.read(sources)
    if json is not None:
        terminal.emit(csv.records(results), json, lambda records: None)
    if json == "-" and out is None:
        return
    images = None if data is None else embedded.open_images(data, action=f"show pictures of {data}")
    content = _render(wanted, results, images)
    if out is None:
        sys.stdout.write(content.decode())
        return
    write_atomic(out, content, f"write the report {out}")
    if json != "-":
        tell(results, out)


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


def _refuse_existing(out: Path, *, overwrite: bool) -> None:
    action = f"write the report {out}"
    if out.is_dir():
        raise UsageError(action, f"{out} is a folder", f"name a file: --out {out / 'report.html'}")
    if out.exists() and not overwrite:
        raise UsageError(action, f"{out} already exists", "name another --out, or add --overwrite")


def _render(wanted: str, results: Sequence[Result], images: ImageSet | None) -> bytes:
    from vitedge.reporting import csv, html, markdown

    makers: dict[str, Callable[[], bytes]] = {
        "html": lambda: html.render(results, images=images).encode(),
        "md": lambda: markdown.render(results).encode(),
        "csv": lambda: csv.render(results).encode(),
    }
    return makers[wanted]()


def tell(results: Sequence[Result], out: Path) -> None:
    """The decisions, and where the report lies."""
    from rich.console import Group

    from vitedge.reporting import rows, terminal
    from vitedge.reporting.decision import decide

    parts = [
        Group(
            terminal.text(f"{decision.headline}  (on {decision.place})", terminal.LOUD),
            *(terminal.indented(reason) for reason in decision.reasons),
            *(terminal.indented(caveat, terminal.QUIET) for caveat in decision.caveats),
        )
        for decision in decide(rows.lines(results))
    ]
    terminal.show(*parts, terminal.text(f"wrote {out}", terminal.QUIET))
