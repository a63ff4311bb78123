"""The numbers in docs/measuring.md are the code's."""

from __future__ import annotations

from pathlib import Path

from vitedge.accuracy.evaluate import BINS, MOST_UNREADABLE
from vitedge.harness import load, validity
from vitedge.harness.bench import Wish
from vitedge.result import METHOD, samples_needed

PAGE = " ".join((Path(__file__).resolve().parents[2] / "docs" / "measuring.md").read_text().split())


def test_numbers_of_the_page() -> None:
    needed = [samples_needed(percent) for percent in (50, 90, 95, 99, 99.9)]
    assert f"need {', '.join(map(str, needed[:-1]))} and {needed[-1]} samples" in PAGE
    assert METHOD == "nearest-rank" and "by nearest rank" in PAGE
    assert f"under {validity.CLOCK_FELL} of the first third's" in PAGE
    assert f"over {validity.MEDIAN_ROSE:.2f} of the first fifth's" in PAGE
    assert f"spans more than {validity.BLOCKS_SPREAD:.0%} of" in PAGE.replace("10 %", "10%")
    assert f"answered more than {validity.REPEATS_FASTER - 1:.0%} faster" in PAGE.replace("10 %", "10%")
    assert f"lie within {load.STEADY - 1:.0%}" in PAGE.replace("5 %", "5%")
    assert load.AUDIT_EVERY == 100 and "one in a hundred" in PAGE
    assert f"over {BINS} bins" in PAGE and f"{MOST_UNREADABLE:.0%} of them" in PAGE.replace("1 %", "1%")
    assert Wish().percentile == 95.0
