"""One artifact against another: how much faster, how much less accurate, and is that allowed?

A comparison fails on what is shown, not on what can't be ruled out: a slow-down when the whole interval of the ratio
lies beyond the tolerance; accuracy by the difference on the very same images, as everywhere against a target's budget.
What isn't shown either way is undecided, with how much more data would tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import field

from vitedge.benchmarking.validity import assess
from vitedge.comparison.options import SLOWDOWN_PCT, Tolerance
from vitedge.comparison.ratio import FEWEST_ROUNDS, SAME, Ratio, interleaved, ratio
from vitedge.core.schema import Record
from vitedge.errors import UsageError
from vitedge.evaluation.statistics import Paired
from vitedge.evaluation.statistics import compare as paired
from vitedge.formats.result import Result, Row

MOST_ROUNDS = 10_000  # no more are advised


class Difference(Record):
    """Top-1 of the candidate against the baseline's, on the same images."""

    images: int
    top1_drop_pp: float = field(name="lost_pts")  # percentage points; negative is a gain
    low_pp: float = field(name="low_pts")  # 95 % interval
    high_pp: float = field(name="high_pts")
    p_value: float  # of McNemar's exact test
    agreement: float  # fraction of the images with the same answer


class Comparison(Record):
    """A candidate against a baseline."""

    baseline: str  # target and precision
    candidate: str
    baseline_digest: str
    candidate_digest: str
    interleaved: bool  # in blocks of one run
    tolerance: Tolerance = field(name="allowed")  # none of its fields is None
    #: Candidate's time over the baseline's, by each block's fastest inference …
    best_case_ratio: Ratio | None = field(name="latency")
    median_ratio: Ratio | None = field(name="typical")  # … and by each block's median, noise included
    accuracy: Difference | None
    failures: tuple[str, ...]  # why the candidate isn't allowed
    undecided: tuple[str, ...]  # what isn't shown either way, and how much more data would decide
    cautions: tuple[str, ...]  # what to know before relying on it

    @property
    def outcome(self) -> str:
        """The result against the tolerance: "worse", "not enough data", "better" or "within tolerance"."""
        if self.failures:
            return "worse"
        if self.undecided:
            return "not enough data"
        return "better" if self.verdict == "faster" else "within tolerance"

    @property
    def verdict(self) -> str:
        """The conclusion from the best-case ratio."""
        ratio = self.best_case_ratio
        if ratio is None:
            return "not measured"
        if ratio.low > 1 + SAME:
            return "slower"
        return "faster" if ratio.high < 1 / (1 + SAME) else "no significant difference"


def compare(
    baseline: tuple[Result, Row], candidate: tuple[Result, Row], tolerance: Tolerance | None = None
) -> Comparison:
    """Compare a candidate with a baseline.

    Args:
        baseline: a row and its result.
        candidate: a row and its result; it may be the same result.
        tolerance: what the candidate may cost.

    Raises:
        UsageError: measured on different machines or under different rules, or nothing that both have.
    """
    (_, old), (_, new) = baseline, candidate
    action = f"compare {name(new)} with {name(old)}"
    budget = new.subject.budget
    given = tolerance or Tolerance()
    limits = Tolerance(
        max_slowdown_pct=SLOWDOWN_PCT if given.max_slowdown_pct is None else given.max_slowdown_pct,
        max_top1_drop_pp=budget.max_top1_drop_pp if given.max_top1_drop_pp is None else given.max_top1_drop_pp,
    )
    failures: list[str] = []
    undecided: list[str] = []
    cautions: list[str] = []
    best_case, by_median = _ratios(baseline, candidate, action)
    one_run = best_case is not None and _interleaved(old, new)
    if best_case is not None:
        _check_latency(best_case, limits, failures, undecided)
        if not one_run:
            cautions.append("measured in two runs: what changed between them isn't in the interval")
    elif old.latency is not None and new.latency is not None:
        undecided.append(f"too few rounds for a ratio; {FEWEST_ROUNDS} would do")
    difference = _accuracies(baseline, candidate)
    if difference is not None:
        _check_accuracy(difference, limits, failures, undecided)
    elif old.accuracy is None or new.accuracy is None:
        cautions.append("accuracy wasn't measured")
    else:
        cautions.append("accuracy was measured on different images")
    if best_case is None and difference is None:
        reason = f"nothing was measured of both: {'; '.join([*undecided, *cautions])}"
        hint = "measure for longer, for instance: --duration 30" if undecided else "compare the artifacts themselves"
        raise UsageError(action, reason, hint)
    _check_budget(new, failures, cautions)
    _check_rows(old, new, failures, cautions)
    if old.partial or new.partial:
        cautions.append("a run was interrupted")
    return Comparison(
        baseline=name(old),
        candidate=name(new),
        baseline_digest=old.subject.digest,
        candidate_digest=new.subject.digest,
        interleaved=one_run,
        tolerance=limits,
        best_case_ratio=best_case,
        median_ratio=by_median,
        accuracy=difference,
        failures=tuple(failures),
        undecided=tuple(undecided),
        cautions=tuple(cautions),
    )


def name(row: Row) -> str:
    """Return target and precision."""
    return f"{row.subject.target} {row.subject.precision}"


def pairs(results: Sequence[Result], action: str) -> list[tuple[tuple[Result, Row], tuple[Result, Row]]]:
    """Return (baseline, candidate) of one result's rows, the first being the baseline; or of two results' equal rows.

    Raises:
        UsageError: nothing to pair.
    """
    rows = [(result, row) for result in results for row in result.rows if row.latency or row.accuracy]
    if len(results) == 1 or len(rows) == 2:
        paired_rows = [(rows[0], other) for other in rows[1:]]
    else:
        earlier, later = (
            {_kind(row): (result, row) for result, row in rows if result is source} for source in results[:2]
        )
        paired_rows = [(earlier[kind], later[kind]) for kind in earlier if kind in later]
    if not paired_rows or len(results) > 2:
        raise UsageError(
            action, "there's nothing to pair", "name one result with several rows, or two results of the same kinds"
        )
    return paired_rows


def _kind(row: Row) -> tuple[str, str, str, int]:
    about = row.subject
    return about.target, about.precision, about.variant, about.batch


# --- latency ---------------------------------------------------------------------------------------------------------


def _ratios(
    baseline: tuple[Result, Row], candidate: tuple[Result, Row], action: str
) -> tuple[Ratio | None, Ratio | None]:
    (before, old), (after, new) = baseline, candidate
    if old.latency is None or new.latency is None:
        return None, None
    here, there = (result.environment for result in (before, after))
    if (here.processor, here.gpus) != (there.processor, there.gpus):
        raise UsageError(action, "they were measured on different machines", "compare the artifacts on one machine")
    if old.latency.rules != new.latency.rules or old.subject.batch != new.subject.batch:
        raise UsageError(action, "their rules or batches differ", "compare the artifacts themselves, in one run")
    return ratio(old.latency, new.latency), ratio(old.latency, new.latency, statistic="median")


def _interleaved(old: Row, new: Row) -> bool:
    return old.latency is not None and new.latency is not None and interleaved(old.latency.samples, new.latency.samples)


def _check_latency(measured: Ratio, limits: Tolerance, failures: list[str], undecided: list[str]) -> None:
    allowed = 1 + (limits.max_slowdown_pct or 0.0) / 100
    highest = allowed * (1 + SAME) if limits.max_slowdown_pct == 0 else allowed
    statement = f"the candidate takes {with_interval(measured)} times as long"
    if measured.low > highest:
        failures.append(f"{statement}; {allowed:g} is allowed")
    elif measured.high > highest:
        undecided.append(
            f"{statement}: whether that is beyond {allowed:g} isn't shown; {_rounds_that_would_do(measured, highest)}"
        )


def _rounds_that_would_do(measured: Ratio, highest: float) -> str:
    """Tell how many rounds would decide: the interval narrows with the square root of the rounds."""
    half, gap = math.log(measured.high / measured.low) / 2, abs(math.log(highest / measured.value))
    needed = measured.rounds * (half / gap) ** 2 if gap else math.inf
    if needed > MOST_ROUNDS:
        return f"it lies too close for {MOST_ROUNDS:,} rounds to show"
    return f"about {10 * math.ceil(needed / 10):,} rounds would show it: --rounds {10 * math.ceil(needed / 10)}"


def with_interval(measured: Ratio) -> str:
    """Return ``1.05 (95 % interval 1.03 to 1.07)``."""
    return f"{measured.value:.3f} (95 % interval {measured.low:.3f} to {measured.high:.3f})"


def _check_budget(row: Row, failures: list[str], cautions: list[str]) -> None:
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
    both: Paired | None = paired(old.accuracy, new.accuracy)
    if both is None:
        return None
    return Difference(
        images=both.images,
        top1_drop_pp=0.0 - 100 * both.difference,
        low_pp=0.0 - 100 * both.interval.high,
        high_pp=0.0 - 100 * both.interval.low,
        p_value=both.p_value,
        agreement=both.agreement,
    )


def _check_accuracy(measured: Difference, limits: Tolerance, failures: list[str], undecided: list[str]) -> None:
    allowed = limits.max_top1_drop_pp or 0.0
    interval = f"{measured.low_pp:.2f} to {measured.high_pp:.2f} pp on {measured.images:,} images"
    if measured.top1_drop_pp > allowed:
        failures.append(
            f"the top-1 drop is {measured.top1_drop_pp:.2f} pp (95 % interval {interval}); {allowed:g} pp is allowed"
        )
    elif measured.high_pp > allowed:
        undecided.append(f"a top-1 drop over {allowed:g} pp can't be ruled out: the interval is {interval}")


def _check_rows(old: Row, new: Row, failures: list[str], cautions: list[str]) -> None:
    for row, whose in ((old, "the baseline"), (new, "the candidate")):
        verdict = assess(row)
        wrong = not verdict.correct or verdict.audited is False
        (failures if wrong else cautions).extend(f"{whose}: {reason}" for reason in verdict.reasons)
