"""How often the interval of an interleaved ratio holds the true one, on simulated machines of five kinds.

Run: python benchmarks/interval_coverage.py [--runs 4000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.comparison.disturbances import KINDS, costs
from vitedge.comparison.ratio import interval

RATIO = 1.05


def covered(kind: str, rounds: int, statistic: str, runs: int) -> tuple[float, float]:
    """(fraction of the intervals that hold the true ratio, median of half their width in percent)."""
    draw, hits, halves = np.random.default_rng(0), 0, []
    for _ in range(runs):
        blocks = costs(draw, kind, rounds, RATIO)
        each = np.median(blocks, axis=2) if statistic == "median" else blocks.min(axis=2)
        value, half = interval([np.log(each[:, 1] / each[:, 0])], [1.0])
        hits += abs(value - np.log(RATIO)) <= half
        halves.append(half)
    return hits / runs, 100 * float(np.median(halves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {}
    for kind in KINDS:
        for rounds in (20, 30, 60, 200):
            for statistic in ("fastest", "median"):
                coverage, half = covered(kind, rounds, statistic, options.runs)
                print(f"{kind:32} {rounds:4} rounds  {statistic:8} {100 * coverage:5.1f} %  ± {half:.2f} %", flush=True)
                found[f"{kind}, {rounds} rounds, {statistic}"] = {"coverage": coverage, "half_width_pct": half}
    if options.json:
        Path(options.json).write_text(json.dumps({"ratio": RATIO, "runs": options.runs, "found": found}, indent=1))


if __name__ == "__main__":
    main()
