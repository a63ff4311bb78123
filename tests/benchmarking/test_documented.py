"""The numbers in docs/measuring.md are the code's."""

from __future__ import annotations

from pathlib import Path

from vitedge.benchmarking import interleaving, load, options, profile, scenarios, sustained, validity
from vitedge.benchmarking.bench import BenchConfig
from vitedge.benchmarking.protocols import OFFLINE_SAMPLES, TOOLS
from vitedge.device import telemetry
from vitedge.evaluation.evaluate import MOST_UNREADABLE
from vitedge.evaluation.scoring import BINS
from vitedge.formats.result import METHOD, samples_needed

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
    assert scenarios.AUDIT_EVERY == 100 and "one in a hundred" in PAGE
    assert f"over {BINS} bins" in PAGE and f"{MOST_UNREADABLE:.0%} of them" in PAGE.replace("1 %", "1%")
    assert BenchConfig().percentile == 95.0
    assert telemetry.PERIOD_S == 0.2 and "five times a second" in PAGE
    assert interleaving.KEEP_EVERY_S == 10 and "every ten seconds" in PAGE
    assert profile.REPEATS == 20 and "medians of 20 inferences" in PAGE
    assert sustained.BURST_S == 10 and "first 10 seconds" in PAGE and sustained.LONG_S == 60
    assert sustained.READINGS_A_BLOCK == 2 and "less than two readings" in PAGE


def test_tools_of_the_page() -> None:
    for name, tool in TOOLS.items():
        assert f"| `{name}` |" in PAGE
        row = PAGE.split(f"| `{name}` |")[1].split("| `")[0]
        assert tool.min_duration_s == 0 or f"{tool.min_duration_s:g} s" in row or "the same" in row
        assert (f"{1000 * tool.warmup_s:g} ms" in row) is (tool.warmup_s > 0)
    assert f"{OFFLINE_SAMPLES:,} samples" in PAGE
    assert tuple(TOOLS) == options.TOOLS  # of the command line
