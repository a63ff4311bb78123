"""The tables of docs/quantization-results.md, made from benchmarks/results: ``python benchmarks/tables.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from vitedge.reporting.rows import points

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quantization-results.md"
END = "<!-- end of the generated table -->"
TARGETS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT, interpreted"}
Result = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_generated(page: str, start: str, text: str) -> str:
    """The page with another text between the mark ``start`` and the end of the generated table that follows it."""
    pattern = re.escape(start) + r".*?(?=" + re.escape(END) + ")"
    page, count = re.subn(pattern, lambda _: f"{start}\n{text}\n", page, flags=re.DOTALL)
    assert count == 1, f"the page has {count} places for {start}"
    return page


def environment(result: Result) -> str:
    """Where the figures are from."""
    where = result["circumstances"]
    versions = (f"{name} {version}" for name, version in where["versions"].items())
    return ", ".join([f"{where['processor']} ({', '.join(where['isa'])})", *versions])


def test_drop(result: Result) -> str:
    """One line a runtime."""
    rows = [
        (
            TARGETS[row["target"]],
            f"`{row['form']}`",
            f"{points(row['lost_pts'])} ({points(row['low_pts'])} to {points(row['high_pts'])})",
            f"{100 * (1 - row['flips']):.2f}",
            f"{1e6 * row['divergence']:.0f}",
        )
        for row in result["rows"]
    ]
    head = ["runtime", "kernel variant", "top-1 drop (pp)", "top-1 agreement (%)", "mean KL · 10⁶"]
    lead = f"{environment(result)}. Float32: {result['float32_top1_percent']:.2f} %."
    return f"{lead} The interval is the paired 95 % interval.\n\n{table(head, rows)}"


def alternatives(result: Result) -> str:
    """One line a tool, the fastest first."""
    rows = [
        (
            row["tool"],
            row["version"],
            f"{row['fastest_ms']:.2f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*row["times"]),
            "–" if row["kl_millionths"] != row["kl_millionths"] else f"{row['kl_millionths']:.0f}",
            f"{row['top1_pct']:.1f}",
            f"{row['same_class_pct']:.1f}",
        )
        for row in result["rows"]
        if "error" not in row
    ]
    head = ["tool", "version", "ms", "time", "mean KL · 10⁶", "top-1 (%)", "top-1 agreement (%)"]
    return f"{result['processor']}, {result['threads']} threads, {result['rounds']} rounds.\n\n{table(head, rows)}"


def calibration_size(result: Result) -> str:
    """One line a number of pictures, a column of KL and one of the drop for each model and target."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["model"], row["target"]) for row in rows))
    kinds: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("KL", "divergence", lambda value: f"{1e6 * value:.0f}"),
        ("drop", "lost_pts", points),
    )

    def cell(count: int, column: tuple[str, str], key: str, show: Callable[[float], str]) -> str:
        values = [row[key] for row in rows if (row["model"], row["target"]) == column and row["count"] == count]
        return f"{show(mean(values))} ({show(min(values))} … {show(max(values))})" if values else ""

    head = ["pictures", *(f"{model}, {TARGETS[target]}: {what}" for model, target in columns for what, *_ in kinds)]
    lines = [
        [count, *(cell(count, column, key, show) for column in columns for _, key, show in kinds)]
        for count in sorted({row["count"] for row in rows})
    ]
    legend = (
        f"Each cell: the mean of up to {1 + max(row['seed'] for row in rows)} draws of the pictures, and the smallest "
        "and the largest. KL is the mean · 10⁶, and the drop is that of top-1 in pp."
    )
    where = f"{environment(result)}; {result['pictures']:,} pictures of {result['data']}."
    return f"{where} {legend}\n\n{table(head, lines)}"


def hard_cases(result: Result) -> str:
    """One line a quantizer, one column a case."""
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    cells = {
        (row["quantizer"], row["case"]): (
            f"{points(row['lost_pts'])} / {100 * row['flips']:.1f} / {row['divergence']:.2g}"
        )
        for row in result["rows"]
    }
    names = list(dict.fromkeys(row["quantizer"] for row in result["rows"]))
    legend = "Each cell: top-1 drop (pp) / percentage of the pictures with another label / mean KL."
    where = f"{environment(result)}; {result['pictures']:,} pictures of {result['data']}."
    return f"{where} {legend}\n\n{table(['quantizer', *cases], [[n, *(cells[n, c] for c in cases)] for n in names])}"


TABLES = {
    "cifar10-test-drop": test_drop,
    "alternatives": alternatives,
    "calibration_size": calibration_size,
    "hard_cases": hard_cases,
}


def written(page: str) -> str:
    """The page with the tables that the files give."""
    for name, render in TABLES.items():
        result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        start = f"<!-- generated from benchmarks/results/{name}.json -->"
        page = with_generated(page, start, f"Generated from `{name}.json`: {render(result)}")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
