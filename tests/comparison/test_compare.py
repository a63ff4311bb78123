"""A candidate against a baseline: what fails, what is only said, and what isn't compared."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from tests.comparison.test_ratio import both
from tests.reporting import results
from vitedge.comparison.compare import Comparison, compare, pairs
from vitedge.comparison.options import Tolerance
from vitedge.errors import UsageError
from vitedge.formats.budget import Budget
from vitedge.formats.result import Accuracy, Check, Result, Row, with_partial_rows
from vitedge.formats.samples import Audit

ON = results.data(400)


def accuracy(lost: int = 0, gained: int = 0) -> Accuracy:
    """350 of 400 right in the baseline; so many others lost and gained."""
    labels = np.array(ON.label)
    right = np.arange(400) < 350
    right[:lost] = False
    right[350 : 350 + gained] = True
    return Accuracy(
        predicted=tuple(np.where(right, labels, (labels + 1) % 10).tolist()), rank=tuple((~right).astype(int).tolist())
    )


def compared(factor: float = 1.0, tolerance: Tolerance | None = None, **changes: object) -> Comparison:
    """A candidate that takes ``factor`` times as long, its row changed."""
    a, b = both(np.random.default_rng(1), factor)
    old = Row(subject=results.subject("openvino", "fp32"), latency=a, accuracy=accuracy())
    new = replace(Row(subject=results.subject("openvino", "int8"), latency=b, accuracy=accuracy()), **changes)
    result = replace(results.demo(), rows=(old, new), data=ON)
    return compare((result, old), (result, new), tolerance)


def test_a_faster_candidate_passes_and_says_how_fast() -> None:
    found = compared(0.7)
    assert found.verdict == "faster" and found.interleaved and found.failures == ()
    assert found.best_case_ratio is not None and found.best_case_ratio.value == pytest.approx(0.7, rel=0.02)
    assert found.tolerance == Tolerance(max_slowdown_pct=0.0, max_top1_drop_pp=0.5)


@pytest.mark.parametrize(
    ("factor", "allowed_pct", "fails"), [(1.05, 0.0, True), (1.05, 10.0, False), (1.2, 10.0, True), (0.9, -20.0, True)]
)
def test_a_slow_down_fails_beyond_what_is_allowed(factor: float, allowed_pct: float, fails: bool) -> None:
    found = compared(factor, Tolerance(max_slowdown_pct=allowed_pct))
    assert bool(found.failures) is fails
    if fails:
        assert "times as long" in found.failures[0] and f"{1 + allowed_pct / 100:g} is allowed" in found.failures[0]


def test_equal_artifacts_do_not_differ_significantly() -> None:
    found = compared(1.002)
    assert found.verdict == "no significant difference" and found.failures == ()


def test_what_cannot_be_ruled_out_is_said() -> None:
    a, b = both(np.random.default_rng(2), 1.0, noise=0.3, rounds=12)
    rows = [Row(subject=results.subject("openvino", "fp32"), latency=latency) for latency in (a, b)]
    result = replace(results.demo(), rows=tuple(rows), data=None)
    found = compare((result, rows[0]), (result, rows[1]))
    assert found.failures == () and any("isn't shown" in reason for reason in found.undecided)


def test_accuracy_fails_beyond_its_budget_and_the_interval_is_told() -> None:
    found = compared(0.7, accuracy=accuracy(lost=6, gained=1))
    assert found.accuracy is not None and found.accuracy.top1_drop_pp == pytest.approx(1.25)
    assert found.accuracy.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert found.failures[0].startswith("the top-1 drop is 1.25 pp") and "0.5 pp is allowed" in found.failures[0]
    assert compared(0.7, Tolerance(max_top1_drop_pp=2.0), accuracy=accuracy(lost=6, gained=1)).failures == ()
    cautious = compared(0.7, accuracy=accuracy(lost=1))
    assert cautious.failures == () and any("a top-1 drop over 0.5 pp can't" in reason for reason in cautious.undecided)
    assert compared(0.7, Tolerance(max_top1_drop_pp=0.0), accuracy=accuracy(gained=3)).failures == ()


def test_the_target_s_latency_budget_holds() -> None:
    about = results.subject("openvino", "int8")
    tight = replace(about, budget=Budget(max_top1_drop_pp=0.5, latency_p95_ms=1.0))
    assert any("the target's budget is 1 ms" in one for one in compared(0.7, subject=tight).failures)
    loose = replace(about, budget=Budget(max_top1_drop_pp=0.5, latency_p95_ms=9.0))
    assert compared(0.7, subject=loose).failures == ()


def test_wrong_answers_fail_and_noise_is_only_said() -> None:
    wrong = Check(name="golden logits", ok=False, detail="deviation 1")
    assert "the candidate: golden logits: deviation 1" in compared(0.7, checks=(wrong,)).failures
    _, b = both(np.random.default_rng(1), 0.7)
    cheat = replace(b, audit=Audit(checked=9, differing=9, max_deviation=1.0, allowed_deviation=1e-4))
    assert any("audited outputs differ" in one for one in compared(latency=cheat).failures)
    hot = replace(b, readings=results.latency(3.0, throttled=True).readings)
    found = compared(latency=hot)
    assert found.failures == ()


def test_what_was_not_measured_is_said() -> None:
    assert "accuracy wasn't measured" in compared(0.7, accuracy=None).cautions
    found = compared(latency=None)
    assert found.best_case_ratio is None and found.verdict == "not measured" and found.accuracy is not None
    with pytest.raises(UsageError, match="nothing was measured of both"):
        compared(latency=None, accuracy=None)
    _, short = both(np.random.default_rng(1), 1.0, rounds=9)
    with pytest.raises(UsageError, match="of both: too few rounds for a ratio; 10 would do") as refusal:
        compared(latency=short, accuracy=None)
    assert refusal.value.hint == "measure for longer, for instance: --duration 30"


def two_runs(**changes: object) -> tuple[tuple[Result, Row], tuple[Result, Row]]:
    before = results.demo()
    after = with_partial_rows(replace(results.demo(), created="2026-02-01T00:00:00+00:00", **changes))
    return (before, before.rows[0]), (after, after.rows[0])


def test_two_runs_are_compared_with_a_caution() -> None:
    found = compare(*two_runs())
    assert (
        not found.interleaved
        and found.best_case_ratio is not None
        and found.best_case_ratio.value == pytest.approx(1.0)
    )
    assert any(caution.startswith("measured in two runs") for caution in found.cautions)
    interrupted = compare(*two_runs(partial=True))
    assert "a run was interrupted" in interrupted.cautions


def test_machines_rules_and_batches_are_not_compared() -> None:
    with pytest.raises(UsageError, match="different machines"):
        compare(*two_runs(environment=results.PI))
    old, (result, row) = two_runs()
    other = replace(row, latency=results.latency(3.1, rules=replace(results.RULES, min_duration_s=60.0)))
    with pytest.raises(UsageError, match="rules or batches differ"):
        compare(old, (result, other))
    eight = replace(row, subject=replace(row.subject, batch=8))
    with pytest.raises(UsageError, match="rules or batches differ"):
        compare(old, (result, eight))


def test_other_images_are_not_compared() -> None:
    found = compare(*two_runs(data=replace(results.data(), digest="e" * 64)))
    assert found.accuracy is None and "accuracy was measured on different images" in found.cautions


def test_rows_of_one_result_meet_its_first_and_those_of_two_their_like() -> None:
    result = results.demo()
    one = pairs([result], "compare")
    assert [(old.subject.precision, new.subject.target) for (_, old), (_, new) in one] == [
        ("fp32", "onnxruntime"),
        ("fp32", "openvino"),
        ("fp32", "openvino"),
    ]
    later = replace(result, rows=tuple(reversed(result.rows)))
    two = pairs([result, later], "compare")
    assert len(two) == 4 and all(old.subject == new.subject for (_, old), (_, new) in two)
    alone = replace(result, rows=result.rows[:1])
    with pytest.raises(UsageError, match="nothing to pair"):
        pairs([alone], "compare")
    (((_, old), (_, new)),) = pairs([alone, replace(result, rows=result.rows[1:2])], "compare")
    assert (old.subject.precision, new.subject.precision) == ("fp32", "int8")  # two single rows are a pair


def test_a_comparison_keeps_the_field_names_of_its_json() -> None:
    """Scripts read what ``vitedge compare --json`` wrote before attributes had better names."""
    written = to_builtins(compared(1.05, Tolerance(max_top1_drop_pp=1.0)))
    assert {"latency", "typical", "allowed", "accuracy"} <= set(written)
    assert set(written["allowed"]) == {"max_slowdown_pct", "max_drop_pts"}
    assert {"lost_pts", "low_pts", "high_pts", "agreement"} <= set(written["accuracy"])
