"""Tables of ``vitedge build`` on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitedge.reporting.terminal import GOOD, QUIET, UNSURE, mark, megabytes, show, table, text

if TYPE_CHECKING:
    from vitedge.runtimes.choice import Timed


def show_built(rows: Sequence[Mapping[str, Any]]) -> None:
    """One row an engine; what stood against the engine that was there is said below."""
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
                    f"{row['seconds']:.1f}" if row["built"] else text("cached", QUIET),
                    row["folder"],
                )
                for row in rows
            ],
        ),
        *(text(f"SM {row['sm']}: {row['because']}", UNSURE) for row in rows if row["because"]),
    )


def show_build(rows: Sequence[Mapping[str, Any]]) -> None:
    """One row an engine, or a candidate that was measured."""
    from msgspec import convert

    from vitedge.runtimes.choice import Timed

    if rows and "latency_p50_ms" in rows[0]:
        show_tuned(convert(rows, list[Timed]))
    else:
        show_built(rows)


def show_tuned(timed: Sequence[Timed]) -> None:
    """One row a candidate, the chosen one marked."""
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
    """Sentences, engine by engine, and what they say together."""
    parts = []
    for name, engine in explained["engines"].items():
        parts += [text(name, "bold"), *(text(sentence) for sentence in engine.sentences)]
    show(*parts, *(text(sentence) for sentence in explained["compared"]))
