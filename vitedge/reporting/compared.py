"""What ``compare`` found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitedge.reporting.rows import UNKNOWN, percent, points
from vitedge.reporting.terminal import BAD, GOOD, UNSURE, mark, show, table, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from vitedge.comparison.compare import Comparison
    from vitedge.comparison.ratio import Ratio


def show_comparisons(found: Sequence[Comparison]) -> None:
    """Time and accuracy of each candidate against the baseline, and what stands against it."""
    show(_latency(found), _accuracy(found), _said(found))


def _latency(found: Sequence[Comparison]) -> RenderableType | None:
    if all(one.latency is None for one in found):
        return None
    return table(
        ["candidate", "baseline", ">time ×", "95 %", ">typically ×", "95 %", ">rounds", ""],
        [
            (
                one.candidate,
                one.baseline,
                *_ratio(one.latency),
                *_ratio(one.typical),
                "" if one.latency is None else one.latency.rounds,
                _word(one),
            )
            for one in found
        ],
        "Time of the candidate over the baseline's",
    )


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    return (UNKNOWN, "") if ratio is None else (f"{ratio.value:.3f}", f"{ratio.low:.3f} … {ratio.high:.3f}")


def _word(one: Comparison) -> Text:
    faster = "" if one.latency is None or one.word != "faster" else f", {1 / one.latency.value:.2f} times as fast"
    return text(f"{one.word}{faster}", {"faster": GOOD, "slower": BAD}.get(one.word, UNSURE))


def _accuracy(found: Sequence[Comparison]) -> RenderableType | None:
    compared = [(one, one.accuracy) for one in found if one.accuracy is not None]
    if not compared:
        return None
    return table(
        ["candidate", "baseline", ">images", ">lost pts", "95 %", ">p", ">agrees %"],
        [
            (
                one.candidate,
                one.baseline,
                f"{difference.images:,}",
                points(difference.lost_pts),
                f"{points(difference.low_pts)} … {points(difference.high_pts)}",
                f"{difference.p_value:.2g}",
                percent(difference.agreement, 2),
            )
            for one, difference in compared
        ],
        "Top-1 on the same images",
    )


def _said(found: Sequence[Comparison]) -> RenderableType:
    said = [
        (mark(ok), one.candidate, text(words, style))
        for one in found
        for ok, style, entries in (
            (False, BAD, one.failures),
            (None, UNSURE, one.cautions),
            (True, GOOD, () if one.failures else ("within what is allowed",)),
        )
        for words in entries
    ]
    return table(["", "candidate", "verdict"], said)
