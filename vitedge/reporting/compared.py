"""Comparisons as tables."""

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


def show_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print time and accuracy of each candidate against the baseline, and the reasons against it."""
    show(_latency(comparisons), _accuracy(comparisons), _verdicts(comparisons))


def _latency(comparisons: Sequence[Comparison]) -> RenderableType | None:
    if all(each.best_case_ratio is None for each in comparisons):
        return None
    return table(
        ["candidate", "baseline", ">best-case ratio", "95 %", ">median ratio", "95 %", ">rounds", "verdict"],
        [
            (
                each.candidate,
                each.baseline,
                *_ratio(each.best_case_ratio),
                *_ratio(each.median_ratio),
                "" if each.best_case_ratio is None else each.best_case_ratio.rounds,
                _verdict(each),
            )
            for each in comparisons
        ],
        "Time of the candidate over the baseline's",
    )


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    return (UNKNOWN, "") if ratio is None else (f"{ratio.value:.3f}", f"{ratio.low:.3f} … {ratio.high:.3f}")


def _verdict(each: Comparison) -> Text:
    faster = (
        ""
        if each.best_case_ratio is None or each.verdict != "faster"
        else f", {1 / each.best_case_ratio.value:.2f} times as fast"
    )
    return text(f"{each.verdict}{faster}", {"faster": GOOD, "slower": BAD}.get(each.verdict, UNSURE))


def _accuracy(comparisons: Sequence[Comparison]) -> RenderableType | None:
    compared = [(each, each.accuracy) for each in comparisons if each.accuracy is not None]
    if not compared:
        return None
    return table(
        ["candidate", "baseline", ">images", ">top-1 drop (pp)", "95 %", ">p", ">top-1 agreement (%)"],
        [
            (
                each.candidate,
                each.baseline,
                f"{difference.images:,}",
                points(difference.top1_drop_pp),
                f"{points(difference.low_pp)} … {points(difference.high_pp)}",
                f"{difference.p_value:.2g}",
                percent(difference.agreement, 2),
            )
            for each, difference in compared
        ],
        "Top-1 on the same images",
    )


def _verdicts(comparisons: Sequence[Comparison]) -> RenderableType:
    marks = {
        "worse": (False, BAD),
        "not enough data": (None, UNSURE),
        "better": (True, GOOD),
        "within tolerance": (True, GOOD),
    }
    verdicts = []
    for each in comparisons:
        ok, style = marks[each.outcome]
        verdicts.append((mark(ok), each.candidate, text(each.outcome, style)))
        for shade, sentences in ((BAD, each.failures), (UNSURE, (*each.undecided, *each.cautions))):
            verdicts += [(text(""), "", text(sentence, shade)) for sentence in sentences]
    return table(["", "candidate", "verdict"], verdicts)
