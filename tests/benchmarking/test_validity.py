"""Every rule of validity fires, and doesn't; what couldn't be seen stays unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.benchmarking.nulls import null_artifact
from tests.formats.test_result import latency, samples
from vitedge.benchmarking.validity import assess, passed_audit, was_throttled, was_unstable
from vitedge.formats.result import Audit, Check, Latency, Reading, Row, Subject

AUDITED = Audit(checked=9, differing=0, max_deviation=0.0, allowed_deviation=1e-4)
STEADY = replace(latency(samples([1000 + n % 7 for n in range(600)], block=30)), audit=AUDITED)


def seen(*readings: Reading, until: float = 1.0, **more: object) -> Latency:
    """Readings evenly over the run, or over a part of it."""
    length = STEADY.samples.blocks[-1].end_ns * until
    spread = [
        replace(reading, at_ns=round(number * length / max(1, len(readings) - 1)))
        for number, reading in enumerate(readings)
    ]
    return replace(STEADY, readings=tuple(spread), **more)


def counted(*counts: int, name: str = "core", **more: object) -> Latency:
    return seen(*(Reading(at_ns=0, throttle_events={name: count}) for count in counts), **more)


def over_current(*pairs: tuple[int, float | None]) -> Latency:
    events = [{"soctherm/oc3_event_cnt": count} for count, _ in pairs]
    return seen(
        *(Reading(at_ns=0, throttle_events=event, clock_mhz=mhz) for event, (_, mhz) in zip(events, pairs, strict=True))
    )


def clocks(*mhz: float | None) -> Latency:
    return seen(*(Reading(at_ns=number, clock_mhz=value) for number, value in enumerate(mhz)))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (STEADY, None),  # no reading at all
        (clocks(None, None, None, None), None),  # readings, and nothing in them
        (clocks(2900, 2900), None),  # too few for a third
        (clocks(2900, 2890, 2900, 2880, 2900, 2890), False),
        (clocks(2900, 2900, 2900, 2900, 2700, 2700), True),
        (clocks(2900, 2900, None, None, 2760, 2760), False),  # 0.952: not under 0.95
        (clocks(1200, 1200, 2900, 2900, 2900, 2900), False),  # clocks may rise
        (seen(*(Reading(at_ns=n, clock_mhz=2900) for n in range(9)), until=0.5), None),  # then it fell silent
        (seen(*(Reading(at_ns=n, clock_mhz=2900 - 300 * n) for n in range(9)), until=0.5), True),
        (seen(*(Reading(at_ns=n, gpu_clock_mhz=1500) for n in range(6))), False),
        (seen(*(Reading(at_ns=n, clock_mhz=2900, gpu_clock_mhz=1500 - 100 * n) for n in range(6))), True),
        (counted(3, 3, 3, 3), False),
        (counted(3, 4), True),
        (counted(3, 4, 4, 1), True),  # also when something resets it
        (counted(3), None),  # one reading has no difference
        (counted(3, 3, 5, 5, resumed_ns=(300_000,)), False),  # it rose between an interruption and its end
        (counted(3, 3, 5, 6, resumed_ns=(300_000,)), True),
        (over_current((0, 1500), (4, 1500), (4, 1500)), False),  # short peaks; the clocks held
        (over_current((0, 1500), (4, 1500), (4, 1500), (4, 700), (4, 1500)), True),
        (over_current((0, None), (4, None)), True),  # no clock to acquit it
        (over_current((4, 1500), (4, 1500), (4, 1500)), False),
        (seen(Reading(at_ns=0), Reading(at_ns=1, throttle_events={"core": 9})), None),  # nothing to compare with
        (seen(*(Reading(at_ns=0, throttle_live={"throttled": False}) for _ in range(2))), False),
        (seen(*(Reading(at_ns=0, power_capped=True) for _ in range(3))), None),  # a limit that's kept is no fault
        (seen(*(Reading(at_ns=n, throttle_live={"throttled": n == 1}) for n in range(3))), True),
    ],
)
def test_throttled(measured: Latency, expected: bool | None) -> None:
    verdict, reason = was_throttled(measured)
    assert verdict is expected
    assert bool(reason) is (expected is True)


@pytest.mark.parametrize(
    ("values", "block", "expected"),
    [
        ([1000] * 600, 30, False),
        ([1000] * 480 + [1090] * 120, 30, False),  # 9 % is not over 10 %
        ([1000] * 480 + [1110] * 120, 30, True),
        ([1110] * 120 + [1000] * 480, 30, False),  # it may become faster
        ([1000] * 49, 1, None),
        ([1000] * 600, 200, None),  # three blocks say nothing about blocks
        (([1000] * 30 + [1120] * 30) * 10, 30, True),
        (([1000] * 15 + [1120] * 15) * 20, 30, False),  # a spread within blocks is no spread of blocks
    ],
)
def test_unstable(values: list[int], block: int, expected: bool | None) -> None:
    verdict, reason = was_unstable(latency(samples(values, block)))
    assert verdict is expected
    assert bool(reason) is (expected is True)


def audit(**changes: object) -> Latency:
    whole = Audit(checked=100, differing=0, max_deviation=0.0, allowed_deviation=1e-4)
    return replace(STEADY, audit=replace(whole, **changes))


def pairs(varied: list[int], repeated: list[int]) -> Latency:
    """Turns whose fastest sample is given; the others are slower."""
    turns = [tuple((fastest, 3 * fastest, 9 * fastest) for fastest in column) for column in (varied, repeated)]
    return audit(varied_ns=turns[0], repeated_ns=turns[1])


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (replace(STEADY, audit=None), None),
        (audit(), True),
        (audit(differing=1), False),
        (pairs([1000] * 8, [950] * 8), True),
        (pairs([1000] * 8, [900] * 8), False),
        (pairs([900] * 8, [1000] * 8), True),
        (pairs([1000] * 8, [900] * 7 + [1500]), False),  # a neighbour came in one turn
        (pairs([2000] * 5 + [1000] * 3, [1000] * 8), True),  # a neighbour in some turns is no memory
        (replace(pairs([1000] * 8, [900] * 8), overhead=samples([50] * 9)), True),  # memory traffic
    ],
)
def test_audit(measured: Latency, expected: bool | None) -> None:
    assert passed_audit(measured)[0] is expected


def test_a_power_cap_is_told_apart(tmp_path: Path) -> None:
    row = Row(subject=Subject.of(null_artifact(tmp_path / "a")), latency=STEADY)
    assert assess(row).power_capped is None
    for capped in (False, True):
        measured = seen(*(Reading(at_ns=0, clock_mhz=2900, power_capped=capped and n == 2) for n in range(4)))
        verdict = assess(replace(row, latency=measured))
        assert verdict.power_capped is capped and verdict.throttled is False and verdict.valid


def test_rows_are_judged_by_all_of_it(tmp_path: Path) -> None:
    row = Row(subject=Subject.of(null_artifact(tmp_path / "a")), latency=STEADY)
    assert assess(row).valid and assess(row).throttled is None and assess(row).reasons == ()
    assert assess(replace(row, latency=None)).valid
    hot = assess(replace(row, latency=clocks(2900, 2900, 2900, 2900, 2000, 2000)))
    assert not hot.valid and hot.throttled and hot.unstable is False and "2900 to 2000 MHz" in hot.reasons[0]
    undecided, wrong = Check(name="a", ok=None, detail="?"), Check(name="golden logits", ok=False, detail="off by 3")
    assert assess(replace(row, checks=(undecided,))).valid
    verdict = assess(replace(row, checks=(undecided, wrong), latency=audit(differing=2)))
    assert not verdict.valid and not verdict.correct and verdict.audited is False
    assert verdict.reasons == ("golden logits: off by 3", "2 of 100 audited outputs differ from the reference run")


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({}, ""),
        ({"samples": samples([1000] * 37, block=3)}, "37 inferences in 13 blocks (50 in 5 are needed)"),
        ({"samples": samples([1000] * 400, block=100)}, "400 inferences in 4 blocks (50 in 5 are needed)"),
        ({"rules": replace(STEADY.rules, percentile=99.9)}, "600 inferences support no p99.9"),
        ({"warmup": replace(STEADY.warmup, stable=False)}, "the warm-up didn't settle"),
        ({"audit": None}, "its outputs weren't audited"),
        ({"audit": replace(AUDITED, checked=0)}, "its outputs weren't audited"),
    ],
)
def test_too_little_is_not_enough_to_say(changes: dict[str, object], lacking: str, tmp_path: Path) -> None:
    row = Row(subject=Subject.of(null_artifact(tmp_path / "a")), latency=replace(STEADY, **changes))
    verdict = assess(row)
    assert verdict.enough is (not lacking) and verdict.valid is (not lacking)
    assert verdict.reasons == ((f"not enough data: {lacking}",) if lacking else ())
