"""The demo's table, its recommendation, and the pictures that it classified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.comparison.ratio import ratio
from vitedge.reporting import rows, terminal
from vitedge.reporting.decision import decide
from vitedge.reporting.gallery import Shown
from vitedge.reporting.rows import Line, milliseconds, percent, points
from vitedge.reporting.terminal import BAD, GOOD, LOUD, QUIET, mark, megabytes, table, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from vitedge.formats.result import Result


def show_summary(result: Result, shown: Sequence[Shown], out: Path) -> None:
    """Print everything that ran, and the recommendation.

    Args:
        result: rows with latency, accuracy, checks, notes and parser checks, as far as there are any.
        shown: classified pictures.
        out: the folder that holds the report, for the last line.
    """
    from rich.console import Group

    lines = rows.lines([result])
    decisions = decide(lines)
    parts: list[RenderableType | None] = [_table(lines), _notes(lines)]
    for decision in decisions:
        sentences = [text(decision.headline, LOUD), *(text(f"  {reason}") for reason in decision.reasons)]
        sentences += [text(f"  {caveat}", QUIET) for caveat in decision.caveats]
        parts.append(Group(*sentences))
    parts.append(_pictures(shown))
    parts.append(text(f"Open {out / 'report.html'} for the report; the artifacts are in {out / 'artifacts'}."))
    terminal.show(*parts)


def _table(lines: Sequence[Line]) -> RenderableType:
    data = next((line.result.data for line in lines if line.images and line.result.data is not None), None)
    images = max((line.images for line in lines), default=0)
    title = None if data is None else f"Latency at batch 1, accuracy on {images} hold-out pictures"
    return table(
        [
            "artifact",
            ">MB",
            ">p50 ms",
            ">p95 ms",
            ">× fp32",
            ">top-1 %",
            ">top-1 drop (pp)",
            ">top-1 agreement (%)",
            ">INT8 MACs",
            "verified",
        ],
        [
            (
                line.label,
                megabytes(line.row.subject.bytes) if line.row.subject.bytes else rows.UNKNOWN,
                milliseconds(line.p50_ms),
                milliseconds(line.p95_ms),
                _speedup(line, lines),
                percent(line.top1),
                points(line.top1_drop_pp),
                rows.UNKNOWN if line.paired is None else percent(line.paired.agreement),
                _int8(line),
                _verified(line),
            )
            for line in lines
        ],
        title,
    )


def _speedup(line: Line, lines: Sequence[Line]) -> str:
    """Return the speed-up over the float32 row of the same target, by the interleaved rounds' medians."""
    for other in lines:
        same = other.row.subject.target == line.row.subject.target and other.row.subject.precision == "fp32"
        if same and other.row.latency is not None and line.row.latency is not None:
            between = ratio(line.row.latency, other.row.latency, statistic="median")
            return rows.UNKNOWN if between is None else f"{between.value:.2f}"
    return rows.UNKNOWN


def _int8(line: Line) -> str:
    """Return the percentage of the multiply-accumulates in int8: executed, or planned where nothing could run."""
    executed, planned = line.row.precision_executed, line.row.subject.precision_planned
    fraction = (planned if executed is None else executed).get("int8", 0.0)
    if executed is None and not fraction:
        return rows.UNKNOWN
    return f"{100 * fraction:.0f} %{' (planned)' if executed is None else ''}"


def _verified(line: Line) -> Text:
    if not line.row.checks:
        return mark(None)
    return text(line.verification.replace(" checks", ""), {True: GOOD, False: BAD, None: ""}[line.verified])


def _notes(lines: Sequence[Line]) -> RenderableType | None:
    """Return the table of notes; rows that share a note share its line."""
    together: dict[str, list[str]] = {}
    for line in lines:
        for note in line.notes:
            together.setdefault(note, []).append(line.label)
    return table(["note", "on"], [(note, ", ".join(on)) for note, on in together.items()]) if together else None


def _pictures(shown: Sequence[Shown]) -> RenderableType | None:
    if not shown:
        return None
    by = [answer.by for answer in shown[0].answers]
    return table(
        ["picture", *by],
        [
            (
                picture.name,
                *(
                    text(
                        f"{answer.label} {percent(answer.probability, 0)} %",
                        GOOD if answer.right else BAD if answer.right is False else "",
                    )
                    for answer in picture.answers
                ),
            )
            for picture in shown
        ],
        "Test pictures, used neither for calibration nor for selection",
    )
