"""Which artifact is recommended, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.comparison.disturbances import INFERENCES, KINDS, costs
from tests.comparison.test_ratio import interleaved_samples
from tests.reporting import results
from vitedge.core.percentiles import samples_needed
from vitedge.formats.budget import Budget
from vitedge.formats.result import Audit, Check, Result, Row
from vitedge.reporting.decision import Decision, decide
from vitedge.reporting.rows import lines


def only(*rows: Row, **changes: object) -> Decision:
    result = replace(results.demo(), rows=rows, **changes)
    (decision,) = decide(lines([result]))
    return decision


def row(target: str, precision: str, median_ms: float, *, size: int = 3_000_000, **changes: object) -> Row:
    about = results.subject(target, precision, size=size)
    made = Row(
        subject=about,
        precision_executed=about.precision_planned,
        latency=results.latency(median_ms, seed=int(median_ms * 1000)),
        checks=results.GOLDEN,
    )
    return replace(made, **changes)


FP32 = row("openvino", "fp32", 3.0, size=11_000_000)
INT8 = row("openvino", "int8", 1.5)
ON = results.data()


def test_the_fastest_is_chosen_with_its_reasons() -> None:
    decision = only(FP32, INT8)
    assert decision.choice is not None and decision.headline == "Deploy openvino int8"
    told = " ".join(decision.reasons)
    assert "times as fast as openvino fp32" in told and "27 % of openvino fp32" in told
    assert "accuracy wasn't measured" in told and "2 checks passed" in told
    assert any("No latency budget" in caveat for caveat in decision.caveats)


def test_an_accuracy_over_its_budget_excludes() -> None:
    fp32 = replace(FP32, accuracy=results.accuracy(ON))
    int8 = replace(INT8, accuracy=results.accuracy(ON, flips=0.1))
    decision = only(fp32, int8, data=ON)
    assert decision.headline == "Deploy openvino fp32"
    ((line, why),) = decision.excluded
    assert line.label == "openvino int8" and "its budget is 0.5" in why
    assert any(caveat.startswith("openvino int8 was faster, but its top-1 drop is") for caveat in decision.caveats)


def test_a_latency_budget_excludes_and_nothing_may_be_left() -> None:
    budget = Budget(max_top1_drop_pp=0.5, latency_p95_ms=1.0)
    rows = [replace(row, subject=replace(row.subject, budget=budget)) for row in (FP32, INT8)]
    decision = only(*rows)
    assert decision.choice is None and decision.headline == "Nothing meets its budget"
    assert all("its budget is 1 ms" in why for _, why in decision.excluded)


def test_too_few_images_to_prove_a_budget_is_said() -> None:
    fp32 = replace(FP32, accuracy=results.accuracy(ON))
    int8 = replace(INT8, accuracy=results.accuracy(ON, flips=0.004))
    decision = only(fp32, int8, data=ON)
    assert decision.choice is not None and decision.choice.row is int8
    assert any("can't rule out a top-1 drop over the budget" in caveat for caveat in decision.caveats)


def test_a_tie_goes_to_the_smaller_unless_it_is_significantly_worse() -> None:
    small, large = row("openvino", "int8", 1.52), row("onnxruntime", "fp32", 1.5, size=11_000_000)
    decision = only(small, large)
    assert decision.choice is not None and decision.choice.row is small
    assert any("within 3 %" in reason for reason in decision.reasons)
    worse = replace(
        small,
        accuracy=results.accuracy(ON, flips=0.06),
        subject=replace(small.subject, budget=Budget(max_top1_drop_pp=50)),
    )
    decision = only(worse, replace(large, accuracy=results.accuracy(ON)), data=ON)
    assert decision.choice is not None and decision.choice.row.subject.precision == "fp32"


def test_a_row_that_is_not_valid_is_shown_and_not_ranked() -> None:
    unstable = replace(INT8, latency=results.latency(1.5, drift=0.5))
    decision = only(FP32, unstable)
    assert decision.choice is not None and decision.choice.row is FP32
    assert [line.row for line in decision.lines] == [FP32, unstable]
    assert [line.row for line in decision.ranking] == [FP32]
    assert any("was faster, but unstable" in caveat for caveat in decision.caveats)


def test_where_nothing_is_valid_the_choice_is_provisional() -> None:
    hot = [replace(row, latency=results.latency(ms, throttled=True)) for row, ms in ((FP32, 3.0), (INT8, 1.5))]
    decision = only(*hot)
    assert decision.provisional and decision.ranking == ()
    assert decision.headline == "Probably openvino int8: measure longer to be sure"
    assert any(caveat.startswith("Not certain: throttled") for caveat in decision.caveats)
    assert any("--duration 20s" in caveat for caveat in decision.caveats)


def test_wrong_outputs_are_never_chosen() -> None:
    wrong = replace(INT8, checks=(Check(name="golden pictures", ok=False, detail="2 of 6 differ"),))
    assert INT8.latency is not None
    cached = replace(
        INT8,
        latency=replace(INT8.latency, audit=Audit(checked=9, differing=9, max_deviation=1.0, allowed_deviation=1e-4)),
    )
    for row in (wrong, cached):
        decision = only(row)
        assert decision.choice is None


def test_rows_under_different_rules_or_on_different_machines_are_not_ranked_together() -> None:
    other = replace(INT8, latency=results.latency(1.5, rules=replace(results.RULES, min_duration_s=60.0)))
    both = decide(lines([replace(results.demo(), rows=(FP32, other))]))
    assert [decision.headline for decision in both] == ["Deploy openvino fp32", "Deploy openvino int8"]
    machines = [replace(results.demo(), rows=(row,), environment=place) for row, place in
                ((FP32, results.LAPTOP), (INT8, results.PI))]  # fmt: skip
    assert [decision.machine for decision in decide(lines(machines))] == [
        "AMD EPYC, 2 cores",
        "Raspberry Pi 5 Model B Rev 1.0",
    ]


def test_batches_are_not_ranked_against_each_other() -> None:
    eight = replace(INT8, subject=replace(INT8.subject, batch=8))
    assert len(decide(lines([replace(results.demo(), rows=(FP32, eight))]))) == 2


def test_without_latency_the_most_accurate_is_named() -> None:
    fp32 = replace(FP32, latency=None, accuracy=results.accuracy(ON))
    int8 = replace(INT8, latency=None, accuracy=results.accuracy(ON, flips=0.05))
    decision = only(fp32, int8, data=ON)
    assert decision.headline == "Most accurate: openvino fp32"
    equal = only(fp32, replace(int8, accuracy=fp32.accuracy), data=ON)
    assert "As accurate as openvino fp32; chosen for its size." in equal.reasons
    assert not any("fast" in reason for reason in equal.reasons)


def test_what_cannot_run_here_joins_its_machine_s_rows() -> None:
    (decision,) = decide(lines([results.demo()]))
    line, why = decision.excluded[-1]
    assert line.label == "tensorrt fp16" and why.startswith("portable")


def test_nothing_at_all() -> None:
    assert decide([]) == []
    assert only(replace(FP32, latency=None)).headline == "Nothing was measured here"


def test_an_interrupted_run_is_said() -> None:
    decision = only(FP32, replace(INT8, partial=True), partial=True)
    assert decision.headline == "Deploy openvino fp32"
    assert any(
        caveat == "openvino int8 was faster, but its measurement was interrupted." for caveat in decision.caveats
    )


def together(kind: str, seed: int, *medians: float, rounds: int = 60, noise: float = 0.02) -> list[Row]:
    """Rows that were interleaved on a simulated machine: "a", the fastest of which is ``medians[0]`` times 3 ms, …"""
    draw = np.random.default_rng(seed)
    shared = costs(draw, kind, rounds, 1.0)[:, 0]
    times = [factor * shared * np.exp(draw.exponential(noise, shared.shape)) / 1e6 for factor in medians]
    return [
        replace(
            row(f"target-{name}", "int8", 1.0),
            latency=replace(results.latency(1.0), samples=samples, overhead=None, readings=()),
        )
        for name, samples in zip("abc", interleaved_samples(times), strict=False)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_rows_share_does_not_keep_a_choice_from_being_firm(kind: str) -> None:
    """Wrong firm choices stay under 5 %, and most choices are firm."""
    decisions = [only(*together(kind, seed, 1.0, 1.1)) for seed in range(20)]
    assert sum(decision.headline == "Deploy target-b int8" for decision in decisions) <= 1
    assert sum(decision.headline == "Deploy target-a int8" for decision in decisions) >= 18


def test_a_machine_whose_speed_changed_is_said_beside_a_firm_choice() -> None:
    decision = only(*together("shared drift", 1, 1.0, 1.3))
    assert decision.headline == "Deploy target-a int8" and not decision.provisional
    assert any("read the ratios" in caveat for caveat in decision.caveats)


def test_too_close_to_call_says_how_to_settle_it() -> None:
    rows = together("quiet", 3, 1.0, 1.01, rounds=20, noise=1.0)
    decision = only(replace(rows[0], subject=replace(rows[0].subject, bytes=9_000_000)), rows[1])
    assert decision.provisional and decision.headline.endswith("measure longer to be sure")
    assert any("rounds tell no more than" in doubt.reason for doubt in decision.unsure)
    assert any(caveat.startswith("To settle it, measure them together for longer") for caveat in decision.caveats)


def slowed(row: Row, *, during: slice, share: float, times: float) -> Row:
    """A row some of whose inferences take longer: of those numbered ``during``, the first ``share`` of each block."""
    assert row.latency is not None
    samples = row.latency.samples
    values = np.asarray(samples.latency_ns, np.float64)
    hit = (np.arange(len(values)) % INFERENCES < share * INFERENCES) & np.isin(
        np.arange(len(values)), np.arange(len(values))[during]
    )
    values[hit] *= times
    slower = replace(samples, latency_ns=tuple(int(value) for value in values))
    return replace(row, latency=replace(row.latency, samples=slower))


@pytest.mark.parametrize(("other", "headline"), [
    (1.4, "Probably target-b int8: measure longer to be sure"),  # it was faster for most of the run
    (0.8, "Deploy target-b int8"),
])  # fmt: skip
def test_a_row_that_drifts_alone_is_not_ranked(other: float, headline: str) -> None:
    drifting, steady = together("quiet", 0, 1.0, other)
    drifting = slowed(drifting, during=slice(420, None), share=1.0, times=1.5)
    decision = only(drifting, steady)
    assert decision.headline == headline
    assert any("against the others' during the run" in why for _, why in decision.excluded)


def test_another_process_that_disturbs_one_artifact_more_than_another_does_not_change_the_choice() -> None:
    """For the last third of the run, seven in ten of one row's inferences take twice as long."""
    faster, slower = together("quiet", 2, 1.0, 1.15)
    disturbed = slowed(faster, during=slice(400, None), share=0.7, times=2.0)
    decision = only(disturbed, slower)
    assert decision.headline == "Deploy target-a int8" and decision.excluded == ()


def test_where_another_process_stays_and_decides_which_is_faster_the_choice_is_not_firm() -> None:
    faster, slower = together("quiet", 2, 1.0, 1.15)
    decision = only(slowed(faster, during=slice(None), share=0.7, times=2.0), slower)
    assert decision.headline == "Probably target-a int8: measure longer to be sure"
    assert "by their medians, so what else runs here decides which is faster" in decision.unsure[0].reason
    assert any(caveat.startswith("By their medians target-b int8 took 0.5") for caveat in decision.caveats)


@settings(deadline=None, max_examples=60)
@given(
    inferences=st.integers(1, 300),
    blocks=st.integers(1, 30),
    interrupted=st.booleans(),
    settled=st.booleans(),
    audited=st.sampled_from([None, 0, 5]),
    percentile=st.sampled_from([50.0, 95.0, 99.0, 99.9]),
)
def test_too_little_data_is_never_a_firm_headline(
    inferences: int, blocks: int, interrupted: bool, settled: bool, audited: int | None, percentile: float
) -> None:
    each = max(1, inferences // blocks)
    timed = results.latency(1.0, rules=replace(results.RULES, percentile=percentile))
    assert timed.audit is not None
    timed = replace(
        timed,
        samples=results.samples(1.0, blocks=blocks, each=each),
        warmup=replace(timed.warmup, stable=settled),
        audit=None if audited is None else replace(timed.audit, checked=audited),
    )
    (decision,) = decide(lines([replace(results.demo(), rows=(replace(INT8, latency=timed, partial=interrupted),))]))
    enough = blocks * each >= max(50, samples_needed(percentile)) and blocks >= 5
    if interrupted or not settled or not audited or not enough:
        assert decision.ranking == () and decision.choice is None and decision.provisional
        assert decision.headline == "Not enough was measured to choose: measure longer"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0.5, 20.0), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_what_is_chosen_is_valid_and_within_a_tie_of_the_fastest(entries: list[tuple[float, bool, bool]]) -> None:
    rows = []
    for number, (median_ms, steady, right) in enumerate(entries):
        about = results.subject(f"target-{number}", "fp32")
        timed = results.latency(median_ms, seed=number, drift=0.0 if steady else 1.0)
        rows.append(Row(subject=about, latency=timed, checks=(Check(name="golden", ok=right, detail=""),)))
    result: Result = replace(results.demo(), rows=tuple(rows), data=None)
    (decision,) = decide(lines([result]))
    assert len(decision.ranking) + len(decision.excluded) == len(rows)
    costs = [line.cost_ms or 0.0 for line in decision.ranking]
    assert costs == sorted(costs)
    if decision.choice is None:
        assert not any(right for _, _, right in entries)
    else:
        assert decision.choice.verdict.correct
        if not decision.provisional:
            assert decision.choice in decision.ranking and (decision.choice.cost_ms or 0.0) <= 1.03 * costs[0]


def test_what_keeps_rows_apart_is_said() -> None:
    def apart(**changes: object) -> str:
        other = replace(results.demo(), rows=(INT8,), **changes)
        return decide(lines([replace(results.demo(), rows=(FP32,)), other]))[-1].apart

    assert apart() == ""
    assert apart(environment=results.PI) == "another machine"
    versions = {**results.LAPTOP.versions, "vitedge": "9.0"}
    assert apart(environment=replace(results.LAPTOP, versions=versions)) == "vitedge 9.0 instead of 0.1.0"
    battery = replace(results.LAPTOP, power_source="battery")
    assert apart(environment=battery) == "power source battery instead of None"
    rules = replace(results.RULES, min_duration_s=60.0, scenario="offline")
    timed = replace(INT8, latency=results.latency(1.5, rules=rules))
    found = decide(lines([replace(results.demo(), rows=(FP32, timed))]))[-1].apart
    assert found == "scenario offline instead of single, seconds at least 60 instead of 5"
    eight = replace(INT8, subject=replace(INT8.subject, batch=8))
    assert decide(lines([replace(results.demo(), rows=(FP32, eight))]))[-1].apart == "batch 8 instead of 1"


def test_accuracies_on_different_images_are_told_apart() -> None:
    fp32 = replace(results.demo(), rows=(replace(FP32, accuracy=results.accuracy(ON)),), data=ON)
    elsewhere = replace(ON, digest="e" * 64, source="others.zip")
    int8 = replace(results.demo(), rows=(replace(INT8, accuracy=results.accuracy(ON)),), data=elsewhere)
    (decision,) = decide(lines([fp32, int8]))
    assert any("different images" in caveat and "others.zip" in caveat for caveat in decision.caveats)
