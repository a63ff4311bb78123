"""The soak of ``benchmarks/stream_soak.py`` in a minute: what doesn't leak passes, and a planted leak is caught."""

from __future__ import annotations

import random

import pytest

from benchmarks.stream_soak import Sample, four_sources, soak, theil_sen

LEAK_MB_H = 3600.0  # a megabyte a second: so much shows in half a minute, whatever else the machine does


def test_the_slope_and_its_bounds() -> None:
    draw = random.Random(1)
    samples = [Sample(second, 50 + second * 7 / 3600 + draw.gauss(0, 0.001), 9, 3) for second in range(60)]
    samples[7] = samples[7]._replace(pss_mb=500)  # one outlier doesn't move it
    slope = theil_sen(samples)
    assert slope.lower_mb_h < 7 < slope.upper_mb_h and slope.mb_h == pytest.approx(7, abs=0.5)


def test_four_sources_for_half_a_minute() -> None:
    with four_sources(frames=200) as urls:  # so each of them hangs up a few times
        found = soak(urls, seconds=30)
    assert found["balanced"] and found["frames"] > 100 and found["reconnects"] >= 3
    assert found["descriptors_moved"] <= 1 and len(found["threads"]) == 1
    assert found["slope_mb_h"]["lower_mb_h"] < LEAK_MB_H / 10


def test_a_leaking_sink_is_caught() -> None:
    found = soak(["test://?pattern=steps&rate=25"], seconds=15, leak_mb_h=LEAK_MB_H)
    assert found["leaks"] and found["slope_mb_h"]["mb_h"] > LEAK_MB_H / 2
