"""Tables of ``vitedge build`` on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitedge.reporting.terminal import GOOD, QUIET, UNSURE, mark, megabytes, show, table, text

if TYPE_CHECKING:
    from vitedge.runtimes.choice import Timed


def show_built(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each engine; below, why earlier engines didn't fit."""
    show(
        table(
            ["artifact", "!built with", "!SM", "GPU", ">MB", ">seconds", "folder"],
            [
                (
                    row["artifact"],
                    row["runtime"],
                    row["sm"],
                    row["gpu"] or "any",
                    megabytes(row["bytes"]),
                    _seconds(row),
                    row["folder"],
                )
                for row in rows
            ],
        ),
        *(text(f"SM {row['sm']}: {row['because']}", UNSURE) for row in rows if row["because"]),
    )


def _seconds(row: Mapping[str, Any]) -> object:
    """Return the time that building took, also where it was done before."""
    took = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    return took if row["built"] else text(f"cached {took}".strip(), QUIET)


def show_planned(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each engine: whether it would be built, the memory, and the time of earlier builds."""
    show(
        table(
            ["artifact", "!built with", "!SM", "GPU", "what", ">MiB, about", "builds of the same graph"],
            [
                (
                    row["artifact"],
                    row["runtime"],
                    row["sm"],
                    row["gpu"] or "any",
                    "to be built" if row["builds"] else text(f"there: {row['folder']}", QUIET),
                    f"{row['memory_mb']:,}" if row["builds"] else "",
                    "; ".join(_earlier(one) for one in row["earlier"][:3]) or text("none known", QUIET),
                )
                for row in rows
            ],
        ),
        *(text(f"SM {row['sm']}: {row['because']}", UNSURE) for row in rows if row["because"]),
        *(
            text(f"SM {row['sm']}: {row['available_mb']:,} MiB are available", UNSURE)
            for row in rows
            if row["builds"] and row["available_mb"] is not None and row["available_mb"] < row["memory_mb"]
        ),
    )


def _earlier(one: Mapping[str, Any]) -> str:
    gpu = f"{one['gpu']}, " if one["gpu"] else ""
    memory = "" if one["peak_mb"] is None else f" and {one['peak_mb']:,} MiB"
    return f"{one['seconds']:.1f} s{memory} for {gpu}SM {one['sm']} with {one['runtime']}"


def show_build(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each engine, or for each candidate that was measured."""
    from msgspec import convert

    from vitedge.runtimes.choice import Timed

    if rows and "latency_p50_ms" in rows[0]:
        show_tuned(convert(rows, list[Timed]))
    else:
        show_built(rows)


def show_tuned(timed: Sequence[Timed]) -> None:
    """Print one row for each candidate, with the chosen one marked."""
    show(
        table(
            ["", "artifact", "!precision", "variant", ">p50 ms", ">p95 ms", ">top-1 drop (pp)", "reason"],
            [
                (
                    mark(each.chosen or None),
                    each.artifact,
                    each.precision,
                    each.variant,
                    f"{each.latency_p50_ms:.3f}",
                    f"{each.latency_p95_ms:.3f}",
                    "" if each.top1_drop_pp is None else f"{each.top1_drop_pp:+.2f}",
                    text(each.reason, GOOD if each.chosen else QUIET),
                )
                for each in timed
            ],
        )
    )


def show_explained(explained: Mapping[str, Any]) -> None:
    """Print sentences about each engine, and about all of them together."""
    parts = []
    for name, engine in explained["engines"].items():
        parts += [text(name, "bold"), *(text(sentence) for sentence in engine.sentences)]
    show(*parts, *(text(sentence) for sentence in explained["compared"]))
