"""One artifact against another: how much faster, how much less accurate, and is that allowed?

It fails on what is shown, not on what can't be ruled out: a slow-down when the whole interval of the ratio lies beyond
what is allowed; accuracy by the difference on the very same images, as everywhere against a target's budget. What can't
be ruled out is said.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitedge.benchmarking.validity import judge
from vitedge.comparison.options import Allowed
from vitedge.comparison.ratio import SAME, Ratio, interleaved, ratio
from vitedge.core.schema import Record
from vitedge.errors import UsageError
from vitedge.evaluation.statistics import Paired
from vitedge.evaluation.statistics import compare as paired
from vitedge.formats.result import Result, Row


class Difference(Record):
    """Top-1 of the candidate against the baseline's, on the same images."""

    images: int
    lost_pts: float  # percentage points; negative is gained
    low_pts: float  # 95 % interval
    high_pts: float
    p_value: float  # of McNemar's exact test
    agreement: float  # share of the images with the same answer


class Comparison(Record):
    """A candidate against a baseline."""

    baseline: str  # target and precision
    candidate: str
    baseline_digest: str
    candidate_digest: str
    interleaved: bool  # in turns within one run
    allowed: Allowed  # none of them None
    latency: Ratio | None  # candidate's time over baseline's, by each turn's fastest inference
    typical: Ratio | None  # the same by each turn's median, noise included
    accuracy: Difference | None
    failures: tuple[str, ...]  # why the candidate isn't allowed
    cautions: tuple[str, ...]  # what to know before relying on it

    @property
    def word(self) -> str:
        """What the ratio says."""
        if self.latency is None:
            return "not measured"
        if self.latency.low > 1 + SAME:
            return "slower"
        if self.latency.high < 1 / (1 + SAME):
            return "faster"
        return "not told apart"


def compare(baseline: tuple[Result, Row], candidate: tuple[Result, Row], allowed: Allowed | None = None) -> Comparison:
    """Hold a candidate against a baseline.

    Args:
        baseline: a row and its result.
        candidate: a row and its result; it may be the same result.
        allowed: what it may cost.

    Raises:
        UsageError: measured on different machines or under different rules, or nothing that both have.
    """
    (before, old), (after, new) = baseline, candidate
    action = f"compare {name(new)} with {name(old)}"
    budget = new.subject.budget
    wish = allowed or Allowed()
    limits = Allowed(
        max_slowdown_pct=wish.max_slowdown_pct or 0.0,
        max_drop_pts=budget.max_top1_drop_pp if wish.max_drop_pts is None else wish.max_drop_pts,
    )
    failures: list[str] = []
    cautions: list[str] = []
    by_fastest, by_median = _latencies(baseline, candidate, action)
    together = by_fastest is not None and _in_turns(old, new)
    if by_fastest is not None:
        _judge_latency(by_fastest, limits, failures, cautions)
        if not together:
            cautions.append("measured in two runs: what changed between them isn't in the interval")
    elif old.latency is not None and new.latency is not None:
        cautions.append("too few turns for a ratio; measure longer")
    difference = _accuracies(baseline, candidate)
    if difference is not None:
        _judge_accuracy(difference, limits, failures, cautions)
    elif old.accuracy is None or new.accuracy is None:
        cautions.append("accuracy wasn't measured")
    else:
        cautions.append("accuracy was measured on different images")
    if by_fastest is None and difference is None:
        reason = f"nothing was measured of both: {'; '.join(cautions)}"
        raise UsageError(action, reason, "compare the artifacts themselves")
    _judge_budget(new, failures, cautions)
    _judge_rows(old, new, failures, cautions)
    if before.partial or after.partial:
        cautions.append("a run was interrupted")
    return Comparison(
        baseline=name(old),
        candidate=name(new),
        baseline_digest=old.subject.digest,
        candidate_digest=new.subject.digest,
        interleaved=together,
        allowed=limits,
        latency=by_fastest,
        typical=by_median,
        accuracy=difference,
        failures=tuple(failures),
        cautions=tuple(cautions),
    )


def name(row: Row) -> str:
    """Target and precision."""
    return f"{row.subject.target} {row.subject.precision}"


def pairs(results: Sequence[Result], action: str) -> list[tuple[tuple[Result, Row], tuple[Result, Row]]]:
    """(baseline, candidate) of one result's rows, the first of which is the baseline; or of two results' like rows.

    Raises:
        UsageError: nothing to pair.
    """
    rows = [(result, row) for result in results for row in result.rows if row.latency or row.accuracy]
    if len(results) == 1 or len(rows) == 2:
        found = [(rows[0], other) for other in rows[1:]]
    else:
        earlier, later = ({_kind(row): (result, row) for result, row in rows if result is one} for one in results[:2])
        found = [(earlier[kind], later[kind]) for kind in earlier if kind in later]
    if not found or len(results) > 2:
        raise UsageError(
            action, "there's nothing to pair", "name one result with several rows, or two results of the same kinds"
        )
    return found


def _kind(row: Row) -> tuple[str, str, str, int]:
    about = row.subject
    return about.target, about.precision, about.variant, about.batch


# --- latency ---------------------------------------------------------------------------------------------------------


def _latencies(
    baseline: tuple[Result, Row], candidate: tuple[Result, Row], action: str
) -> tuple[Ratio | None, Ratio | None]:
    (before, old), (after, new) = baseline, candidate
    if old.latency is None or new.latency is None:
        return None, None
    here, there = (result.circumstances for result in (before, after))
    if (here.processor, here.gpus) != (there.processor, there.gpus):
        raise UsageError(action, "they were measured on different machines", "compare the artifacts on one machine")
    if old.latency.rules != new.latency.rules or old.subject.batch != new.subject.batch:
        raise UsageError(action, "their rules or batches differ", "compare the artifacts themselves, in one run")
    return ratio(old.latency, new.latency), ratio(old.latency, new.latency, typical=True)


def _in_turns(old: Row, new: Row) -> bool:
    return old.latency is not None and new.latency is not None and interleaved(old.latency.samples, new.latency.samples)


def _judge_latency(found: Ratio, limits: Allowed, failures: list[str], cautions: list[str]) -> None:
    allowed = 1 + (limits.max_slowdown_pct or 0.0) / 100
    most = allowed * (1 + SAME) if limits.max_slowdown_pct == 0 else allowed
    told = f"it takes {times(found)} times as long"
    if found.low > most:
        failures.append(f"{told}; {allowed:g} is allowed")
    elif found.high > most:
        cautions.append(f"{told}: a slow-down beyond {allowed:g} can't be ruled out")


def times(found: Ratio) -> str:
    """``1.05 (95 % interval 1.03 to 1.07)``."""
    return f"{found.value:.3f} (95 % interval {found.low:.3f} to {found.high:.3f})"


def _judge_budget(row: Row, failures: list[str], cautions: list[str]) -> None:
    budget_ms = row.subject.budget.latency_p95_ms
    if budget_ms is None or row.latency is None:
        return
    p95_ns = row.latency.samples.percentile_ns(95)
    if p95_ns is None:
        cautions.append("too few samples to hold its p95 against the target's budget")
    elif p95_ns / 1e6 > budget_ms:
        failures.append(f"its p95 is {p95_ns / 1e6:.3g} ms; the target's budget is {budget_ms:g} ms")


# --- accuracy and validity -------------------------------------------------------------------------------------------


def _accuracies(baseline: tuple[Result, Row], candidate: tuple[Result, Row]) -> Difference | None:
    (before, old), (after, new) = baseline, candidate
    if old.accuracy is None or new.accuracy is None or before.data is None or after.data is None:
        return None
    if (before.data.digest, before.data.names) != (after.data.digest, after.data.names):
        return None
    found: Paired | None = paired(old.accuracy, new.accuracy)
    if found is None:
        return None
    return Difference(
        images=found.images,
        lost_pts=0.0 - 100 * found.difference,
        low_pts=0.0 - 100 * found.interval.high,
        high_pts=0.0 - 100 * found.interval.low,
        p_value=found.p_value,
        agreement=found.agreement,
    )


def _judge_accuracy(found: Difference, limits: Allowed, failures: list[str], cautions: list[str]) -> None:
    allowed = limits.max_drop_pts or 0.0
    told = f"{found.low_pts:.2f} to {found.high_pts:.2f} points on {found.images:,} images"
    if found.lost_pts > allowed:
        failures.append(f"it loses {found.lost_pts:.2f} points of top-1 (95 % interval {told}); {allowed:g} is allowed")
    elif found.high_pts > allowed:
        cautions.append(f"a drop over {allowed:g} points can't be ruled out: the interval is {told}")


def _judge_rows(old: Row, new: Row, failures: list[str], cautions: list[str]) -> None:
    for row, whose in ((old, "the baseline"), (new, "the candidate")):
        verdict = judge(row)
        wrong = not verdict.correct or verdict.audited is False
        (failures if wrong else cautions).extend(f"{whose}: {reason}" for reason in verdict.reasons)
