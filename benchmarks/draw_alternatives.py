"""Draw what ``alternatives.py`` measured: latency and accuracy of every tool, as the SVG of the README.

python benchmarks/draw_alternatives.py [RESULT] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from alternative_workers import RIGHT

ROOT = Path(__file__).resolve().parents[1]
OURS, INT8, FLOAT, MUTED = "vitedge", "#0b6e4f", "#4a6fa5", "#8a8f98"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, default=ROOT / "benchmarks/results/alternatives.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/alternatives.svg")
    options = parser.parse_args()
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "vitedge", "font.size": 9, "svg.fonttype": "none"})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(json.loads(options.result.read_text()), options.out)


def draw(result: dict[str, Any], out: Path) -> None:
    """Two panels that share their rows, the fastest at the top; tools that failed or answer wrongly aren't drawn."""
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if "error" not in row and row["same_class_pct"] >= RIGHT]
    figure, (latency, accuracy) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 0.27 * len(rows) + 1.1), width_ratios=(2, 1), layout="constrained"
    )
    for number, row in enumerate(rows):
        ours = row["tool"].startswith(OURS)
        color = INT8 if "int8" in row["tool"] else FLOAT
        latency.plot([0, row["fastest_ms"]], [number] * 2, color=color, linewidth=1, alpha=1.0 if ours else 0.4)
        for axes, value in ((latency, row["fastest_ms"]), (accuracy, row["top1_pct"])):
            axes.plot(value, number, "o" if ours else "D", color=color, markersize=7 if ours else 5)
        latency.annotate(
            f"{row['fastest_ms']:.2f} ms",
            (row["fastest_ms"], number),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color="#333333",
        )
    names = [row["tool"].replace(f"{OURS} ", f"{OURS}: ") for row in rows]
    latency.set_yticks(range(len(rows)), names)
    for label, row in zip(latency.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["tool"].startswith(OURS) else "normal")
    latency.invert_yaxis()
    latency.set_xlim(0, 1.15 * max(row["fastest_ms"] for row in rows))
    latency.set_xlabel("milliseconds for one picture (less is better)")
    accuracy.set_xlim(85, 95)  # 1,000 pictures tell two points apart, not two tenths
    accuracy.set_xlabel("top-1, % of 1,000 pictures")
    for axes in (latency, accuracy):
        axes.grid(axis="x", color=MUTED, alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(
        f"One model, every tool's own path: {result['processor']}, {result['threads']} threads, batch 1",
        fontsize=10,
    )
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
