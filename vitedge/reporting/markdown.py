"""The decision and the table as Markdown, for a README or an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitedge.errors import printable
from vitedge.formats.result import Result
from vitedge.reporting import rows
from vitedge.reporting.decision import Decision, decide
from vitedge.reporting.rows import Line, milliseconds, percent, points, rate

COLUMNS = (
    "artifact",
    "MB",
    "load ms",
    "p50 ms",
    "p95 ms",
    "images/s",
    "top-1 %",
    "top-1 drop (pp)",
    "top-1 agreement (%)",
    "verified",
)
_PUNCTUATION = re.compile(r"([\\`*_\[\]|~$]|^[#+-])")


def escape(text: object) -> str:
    """Escape text so that Markdown, and the HTML inside it, shows it unchanged, on one line."""
    plain = printable(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _PUNCTUATION.sub(r"\\\1", plain)


def render(results: Sequence[Result]) -> str:
    """Return one section for each machine and set of rules: the decision, its reasons, the table, and notes.

    Where there are several, one table of all rows comes first.
    """
    decisions = decide(rows.lines(results))
    parts = [_section(decision) for decision in decisions]
    return "\n\n".join([*([merged(decisions)] if len(decisions) > 1 else []), *parts]) + "\n"


def merged(decisions: Sequence[Decision]) -> str:
    """Return the rows of all machines in one table; ranks are given only among rows that may be compared."""
    columns = ("group", "machine", "rank", *COLUMNS)
    table = [f"| {' | '.join(columns)} |", f"| ---: | --- | --- | --- |{' ---: |' * (len(COLUMNS) - 2)} :-: |"]
    for number, decision in enumerate(decisions, 1):
        for line in decision.lines:
            ranked = line in decision.ranking
            rank = f"{decision.ranking.index(line) + 1} of {len(decision.ranking)}" if ranked else "not ranked"
            cells = (str(number), escape(decision.machine), rank, *_cells(line, decision))
            table.append(f"| {' | '.join(cells)} |")
    apart = [
        f"- Group {number} isn't ranked with group 1: {escape(decision.apart)}"
        for number, decision in enumerate(decisions, 1)
        if decision.apart
    ]
    return "\n".join([*table, "", *apart])


def _section(decision: Decision) -> str:
    parts = [f"**{escape(decision.headline)}** on {escape(decision.machine)}"]
    for title, entries in (("Why", decision.reasons), ("Before acting on it", decision.caveats)):
        if entries:
            parts.append("\n".join([f"{title}:", "", *(f"- {escape(entry)}" for entry in entries)]))
    parts.append(table(decision))
    notes = [(line, note) for line in decision.lines for note in line.notes]
    if notes:
        parts.append("\n".join(f"- {escape(line.label)}: {escape(note)}" for line, note in notes))
    return "\n\n".join(parts)


def table(decision: Decision) -> str:
    """Return the rows of one decision; the recommended one is bold. Intervals are 95 %."""
    head = [f"| {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (len(COLUMNS) - 2)} :-: |"]
    return "\n".join([*head, *(f"| {' | '.join(_cells(line, decision))} |" for line in decision.lines)])


def _cells(line: Line, decision: Decision) -> list[str]:
    name = escape(line.label)
    return [
        f"**{name}**" if line is decision.choice else name,
        f"{line.row.subject.bytes / 1e6:.1f}",
        milliseconds(line.load_ms),
        milliseconds(line.p50_ms),
        milliseconds(line.p95_ms),
        rate(line.throughput),
        _with_interval(percent(line.top1), line.top1_interval, scale=100, digits=1),
        _with_interval(points(line.top1_drop_pp), line.drop_interval, scale=1, digits=2),
        percent(line.paired.agreement if line.paired else None),
        {True: "✓ ", False: "✗ ", None: ""}[line.verified] + line.verification,
    ]


def _with_interval(text: str, interval: Sequence[float] | None, *, scale: float, digits: int) -> str:
    if interval is None:
        return text
    low, high = (points(scale * end, digits) for end in interval)
    return f"{text} ({low} to {high})"
