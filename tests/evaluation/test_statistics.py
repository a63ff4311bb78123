"""Intervals, tests and calibration against published values, enumeration and definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitedge.core.intervals import mcnemar, paired_interval, quantile, wilson
from vitedge.evaluation.scoring import BINS, reliability
from vitedge.evaluation.statistics import calibration_error, class_scores, compare, confusion, per_class, top_k
from vitedge.formats.result import Accuracy, Calibrated, DataSet


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(successes: int, count: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 50_000), share=st.floats(0, 1, allow_subnormal=False))
def test_wilson_inverts_the_score_test(count: int, share: float) -> None:
    successes = round(share * count)
    interval, p = wilson(successes, count), successes / count
    assert 0 <= interval.low <= p <= interval.high <= 1
    for end, open_ in ((interval.low, successes > 0), (interval.high, successes < count)):
        if open_:  # |p - end| is exactly z standard errors at the end
            assert abs(p - end) == pytest.approx(quantile() * math.sqrt(end * (1 - end) / count), rel=1e-6, abs=1e-12)
    mirrored = wilson(count - successes, count)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx(interval, abs=1e-12)


def test_intervals_refuse_impossible_counts() -> None:
    for wrong in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError):
            wilson(*wrong)
    for wrong in ((3, 3, 5), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(ValueError):
            paired_interval(*wrong)


@settings(max_examples=200, deadline=None)
@given(gained=st.integers(0, 120), lost=st.integers(0, 120))
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    """Two-sided, p = ½: every outcome that's no likelier than the one seen."""
    count = gained + lost
    seen = math.comb(count, gained)
    as_unlikely = sum(math.comb(count, k) for k in range(count + 1) if math.comb(count, k) <= seen)
    assert mcnemar(gained, lost) == pytest.approx(float(Fraction(as_unlikely, 2**count)), rel=1e-12)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 7) == 0.0703125  # Fagerland, Lydersen, Laake (2013), airway hyper-responsiveness
    assert mcnemar(0, 5) == 0.0625
    assert mcnemar(5000, 5000) == 1.0
    assert 0 < mcnemar(4700, 5300) < 1e-8
    assert mcnemar(0, 3000) == 0.0  # 2⁻²⁹⁹⁹ has no float


@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.02, 0.1), (0.2, 0.1), (0.01, 0.01)])
def test_paired_interval_covers_the_true_difference(up: float, down: float) -> None:
    """Over every possible outcome of 60 pairs, weighted by its probability, at least about 95 %."""
    count, covered = 60, 0.0
    for gained in range(count + 1):
        for lost in range(count - gained + 1):
            ways = math.comb(count, gained) * math.comb(count - gained, lost)
            chance = ways * up**gained * down**lost * (1 - up - down) ** (count - gained - lost)
            interval = paired_interval(gained, lost, count)
            covered += chance * (interval.low <= up - down <= interval.high)
    assert 0.94 <= covered <= 1


def test_paired_interval_known_value() -> None:
    """Bonett and Price (2012) on the same data: (1 + 1) / 23, (7 + 1) / 23."""
    p, q = 2 / 23, 8 / 23
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / 23)
    assert paired_interval(1, 7, 21) == pytest.approx((p - q - half, p - q + half), abs=1e-6)
    assert paired_interval(1, 7, 21) == pytest.approx((-0.508, -0.013), abs=1e-3)


ranks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(pairs=ranks)
def test_comparison_from_the_columns(pairs: list[tuple[int, int]]) -> None:
    ours = Accuracy(predicted=tuple(a for a, _ in pairs), rank=tuple(a for a, _ in pairs))
    theirs = Accuracy(predicted=tuple(b for _, b in pairs), rank=tuple(b for _, b in pairs))
    found = compare(ours, theirs)
    assert found is not None
    assert found.difference == pytest.approx((top_k(theirs, 1) - top_k(ours, 1)) / len(pairs))
    assert found.agreement == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert [pairs[index][0] != pairs[index][1] for index in range(len(pairs))] == [
        index in found.flips for index in range(len(pairs))
    ]
    back = compare(theirs, ours)
    assert back is not None and (back.gained, back.lost, back.p_value) == (found.lost, found.gained, found.p_value)


def test_comparison_takes_what_both_have_answered() -> None:
    whole = Accuracy(predicted=(0, 1, 2), rank=(0, 1, 0))
    partial = Accuracy(predicted=(0, 2), rank=(0, 0))
    found = compare(whole, partial)
    assert found is not None and (found.images, found.gained, found.lost, found.flips) == (2, 1, 0, (1,))
    assert compare(whole, Accuracy(predicted=(), rank=())) is None


def test_classes_and_confusion() -> None:
    data = DataSet(source="", digest="", classes=("a", "b", "c"), names=("1", "2", "3", "4"), label=(0, 0, 1, 2))
    accuracy = Accuracy(predicted=(0, 1, 1, 0), rank=(0, 2, 0, 1))
    assert confusion(accuracy, data) == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert per_class(accuracy, data) == [(1, 2), (1, 1), (0, 1)]
    assert [top_k(accuracy, k) for k in (1, 2, 3)] == [2, 3, 4]


def test_calibration_error_by_hand() -> None:
    bins = Calibrated(count=(4, 0, 6), correct=(1, 0, 6), confidence_sum=(2.0, 0.0, 5.4))
    assert calibration_error(bins) == pytest.approx(4 / 10 * abs(0.5 - 0.25) + 6 / 10 * abs(0.9 - 1.0))
    assert calibration_error(Calibrated(count=(0,), correct=(0,), confidence_sum=(0.0,))) is None


@settings(max_examples=100, deadline=None)
@given(answers=st.lists(st.tuples(st.floats(0, 1, allow_subnormal=False), st.booleans()), min_size=1, max_size=80))
def test_calibration_error_is_guos(answers: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([c for c, _ in answers]), np.array([right for _, right in answers])
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    expected = 0.0
    for bin_ in range(BINS):
        inside = place == bin_
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert calibration_error(reliability(confidence, correct)) == pytest.approx(expected, abs=1e-12)


def test_classes_that_lost_most_come_first() -> None:
    data = DataSet(source="s", digest="d", classes=("a", "b", "c"), names=("1", "2", "3", "4"), label=(0, 0, 1, 1))
    before, after = (Accuracy(predicted=found, rank=(0, 0, 0, 0)) for found in ((0, 0, 1, 0), (0, 1, 1, 1)))
    lost, gained, empty = (next(one for one in class_scores(after, data, before) if one.name == n) for n in "abc")
    assert next(one.name for one in class_scores(after, data, before)) == "a"
    assert (lost.images, lost.top1, lost.reference_top1, lost.top1_drop_pp) == (2, 0.5, 1.0, 50.0)
    assert gained.top1_drop_pp == -50.0 and gained.interval == wilson(2, 2)
    assert (empty.images, empty.top1, empty.interval, empty.top1_drop_pp) == (0, None, None, None)
    assert class_scores(after, data)[0].reference_top1 is None
