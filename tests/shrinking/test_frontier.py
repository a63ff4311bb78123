"""The curve of several budgets: both precisions, measured; as JSON, table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.cli.command import fails
from tests.cli.command import vitedge as run
from vitedge.formats.model_folder import Model, class_table, write_model
from vitedge.shrinking import frontier, timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENTRY_S", 0.02)
    monkeypatch.setattr(timing, "WHOLE_S", 0.02)
    monkeypatch.setattr(frontier, "BUDGETS", 1)


@pytest.mark.usefixtures("quick")
def test_a_curve_has_both_precisions_and_the_whole_model(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = ("--target", "onnxruntime", "--precision", "int8", "--threads", 1, "--frontier", "--num-samples", 24)
    beside = ("--beside", small_model, "--beside", "vit_nano_patch4_32")
    done = run("shrink", small_model, *how, *beside, "--data", small_data, "--out", tmp_path / "small")
    assert done.code == 0, done.err
    curve = json.loads((tmp_path / "small.frontier.json").read_bytes())
    points = curve["points"]
    assert {each["precision"] for each in points} == {"fp32", "int8"}
    for precision in ("fp32", "int8"):
        whole, *others, same, member = (each for each in points if each["precision"] == precision)
        assert (same["model"], same["top1"], same["loss"]) == ("small", whole["top1"], whole["loss"])
        assert (member["model"], member["top1"], member["loss"]) == ("vit_nano_patch4_32", None, None)
        assert same["latency_ms"] > 0 and member["latency_ms"] > 0 and member["macs"] > whole["macs"]
        assert whole["budget"] == "whole" and whole["widths"] == {} and whole["speedup"] == 1.0
        assert others and all(each["widths"] and each["macs"] < whole["macs"] for each in others)
        assert all(each["latency_ms"] > 0 and 0 <= each["top1"] <= 1 for each in (whole, *others))
        assert whole["model"] is None and not any(each["model"] for each in others)
    float32 = [each["widths"] for each in points if each["precision"] == "fp32"]
    assert float32 == [each["widths"] for each in points if each["precision"] == "int8"], "the same models"
    whole = points[0]
    assert whole["loss"]["agreement"] == 1.0 and whole["loss"]["divergence"] < 1e-9
    svg = (tmp_path / "small.frontier.svg").read_text()
    assert ">fp32<" in svg and ">int8<" in svg and "top-1, %" in svg
    assert svg.count(">small<") == 2 and svg.count(">vit_nano_patch4_32<") == 2, "once a precision"
    assert "whole" in done.out and "--speedup" in done.out and "small.frontier.svg" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.frontier.json", "small.frontier.svg"]
    _, reason, _ = fails(2, "shrink", small_model, *how, "--data", small_data, "--out", tmp_path / "small")
    assert reason.endswith("small.frontier.svg already exists")


def test_what_stands_beside_is_a_model_of_the_same_classes(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = ("shrink", small_model, "--target", "onnxruntime", "--data", small_data, "--num-samples", 24)
    how = (*how, "--out", tmp_path / "small")
    _, reason, hint = fails(2, *how, "--frontier", "--beside", "vit_nano_patch4_23")
    assert "is neither a model folder nor in the zoo; the nearest is 'vit_nano_patch4_32'" in reason
    assert "zoo for all members" in hint
    whole = Model.open(small_model)
    record = replace(whole.record, classes=class_table(["a", "b", "c", "d", "e"]))
    other = write_model(tmp_path / "other", record, {"model.onnx": whole.onnx_path.read_bytes()})
    _, reason, _ = fails(2, *how, "--frontier", "--beside", other.path)
    assert "has other classes than small" in reason
    _, reason, hint = fails(2, *how, "--macs", 0.5, "--beside", small_model)
    assert "to the picture of --frontier" in reason and "add --frontier" in hint


def test_a_curve_takes_a_target_that_runs_here(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    how = ("--target", "jetson-orin-nano", "--frontier", "--num-samples", 24, "--data", small_data)
    _, reason, hint = fails(2, "shrink", small_model, *how, "--out", tmp_path / "small")
    assert reason.startswith("nothing can be measured: ") and "--table table.json" in hint
