"""The curve of several budgets: both precisions, measured; as JSON, table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import fails
from tests.cli.command import vitedge as run
from vitedge.shrinking import frontier, timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENTRY_S", 0.02)
    monkeypatch.setattr(timing, "WHOLE_S", 0.02)
    monkeypatch.setattr(frontier, "BUDGETS", 1)


@pytest.mark.usefixtures("quick")
def test_a_curve_has_both_precisions_and_the_whole_model(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = ("--target", "onnxruntime", "--precision", "int8", "--threads", 1, "--frontier", "--num-samples", 24)
    done = run("shrink", small_model, *how, "--data", small_data, "--out", tmp_path / "small")
    assert done.code == 0, done.err
    curve = json.loads((tmp_path / "small.frontier.json").read_bytes())
    points = curve["points"]
    assert {each["precision"] for each in points} == {"fp32", "int8"}
    for precision in ("fp32", "int8"):
        whole, *others = (each for each in points if each["precision"] == precision)
        assert whole["budget"] == "whole" and whole["widths"] == {} and whole["speedup"] == 1.0
        assert others and all(each["widths"] and each["macs"] < whole["macs"] for each in others)
        assert all(each["latency_ms"] > 0 and 0 <= each["top1"] <= 1 for each in (whole, *others))
    float32 = [each["widths"] for each in points if each["precision"] == "fp32"]
    assert float32 == [each["widths"] for each in points if each["precision"] == "int8"], "the same models"
    whole = points[0]
    assert whole["loss"]["agreement"] == 1.0 and whole["loss"]["divergence"] < 1e-9
    svg = (tmp_path / "small.frontier.svg").read_text()
    assert ">fp32<" in svg and ">int8<" in svg and "top-1, %" in svg
    assert "whole" in done.out and "--speedup" in done.out and "small.frontier.svg" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.frontier.json", "small.frontier.svg"]
    _, reason, _ = fails(2, "shrink", small_model, *how, "--data", small_data, "--out", tmp_path / "small")
    assert reason.endswith("small.frontier.svg already exists")


def test_a_curve_takes_a_target_that_runs_here(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = ("--target", "jetson-orin-nano", "--frontier", "--num-samples", 24, "--data", small_data)
    _, reason, hint = fails(2, "shrink", small_model, *how, "--out", tmp_path / "small")
    assert reason.startswith("nothing can be measured: ") and "--table table.json" in hint
