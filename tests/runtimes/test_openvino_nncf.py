"""NNCF's quantization as a candidate: planned from what it left, proven like any other, never required."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.contract import artifacts
from tests.contract.portable import relative
from vitedge import api
from vitedge.api import plan_export
from vitedge.errors import NotInstalledError, UsageError
from vitedge.formats.target import Candidate, load_target
from vitedge.installation import install_command
from vitedge.runtimes.base import BUDGET, Lowered
from vitedge.runtimes.executed import unmet_layers
from vitedge.runtimes.openvino.detect import core
from vitedge.runtimes.session import open_session

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytest.importorskip("nncf", reason="NNCF isn't installed")

TARGET = load_target("openvino")
NNCF_INT8 = Candidate(precision="int8", variant="nncf-int8")


def test_it_runs_what_it_is_said_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wish = artifacts.request(TARGET, NNCF_INT8)
    lowered = artifacts.lower(wish)
    assert capfd.readouterr().out == ""  # a program that prints JSON calls it
    planned = {layer.name: layer.precision for layer in lowered.layers}
    assert {planned[f"blocks.{block}.{name}"] for block in (0, 1) for name in ("attn.qkv", "mlp.fc2")} == {"int8"}
    assert planned["blocks.0.attn.context"] == "fp32"
    assert {layer.reason for layer in lowered.layers if layer.precision == "fp32"} == {"NNCF leaves it in float"}
    assert lowered.built_with["nncf"] == importlib.metadata.version("nncf")
    frames = np.random.default_rng(5).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    with open_session(artifacts.write(tmp_path / "artifact", wish, lowered)) as session:
        assert unmet_layers(lowered.layers, session.executed()) == []
        logits = np.stack([session.run(frame[None])[0] for frame in frames])
    assert relative(logits, artifacts.reference(frames)) < 0.2
    weights = [np.abs(each.astype(int)).max() for each in _stored(lowered)]
    assert weights and max(weights) <= 64  # seven bits, as the target's instruction set needs


def _stored(lowered: Lowered) -> list[np.ndarray]:
    """The int8 constants of an IR."""
    model = core().read_model(lowered.files["model.xml"], lowered.files["model.bin"])
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return [node.data for node in constants if node.get_element_type().to_string() == "i8" and node.data.ndim > 1]


def test_only_what_may_be_quantized_is() -> None:
    chosen = frozenset({"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"})
    lowered = artifacts.lower(dataclasses.replace(artifacts.request(TARGET, NNCF_INT8), quantized=chosen))
    assert {layer.name for layer in lowered.layers if layer.precision == "int8"} == chosen
    assert {layer.reason for layer in lowered.layers if layer.name not in chosen} == {BUDGET}


def test_where_it_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name))
    with pytest.raises(NotInstalledError) as missing:
        artifacts.lower(artifacts.request(TARGET, NNCF_INT8))
    assert missing.value.exit_code == 8 and install_command("nncf") in str(missing.value)


def test_other_candidates_do_without_it(small_model: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name))
    others = Candidate(precision="int8", variant="pointwise-int8")
    wish = {"precision": "int8", "out": "artifact", "data": small_data, "num_samples": 16}
    plan = plan_export(small_model, replace(TARGET, candidate=(NNCF_INT8, others)), **wish)
    assert plan.candidates == (others,)
    with pytest.raises(NotInstalledError, match="kernel variant 'nncf-int8' of target 'openvino'"):
        plan_export(small_model, replace(TARGET, candidate=(NNCF_INT8,)), **wish)


@pytest.mark.skipif(platform.machine() == "aarch64", reason="it can be judged here")
def test_it_is_left_out_where_nothing_can_evaluate_it(small_model: Path, small_data: Path) -> None:
    """Its arithmetic can't be interpreted, so a machine without the target's instructions would judge wrongly."""
    wish = {"precision": "int8", "out": "artifact", "data": small_data, "num_samples": 16, "with_candidates": True}
    arm = load_target("openvino-arm")
    ours = arm.candidates("int8")
    two = (*ours, Candidate(precision="int8", variant="linears-convs-int8"))
    assert plan_export(small_model, replace(arm, candidate=(*two, NNCF_INT8)), **wish).candidates == two
    with pytest.raises(UsageError, match="can be evaluated on the target's kind of machine alone"):
        plan_export(small_model, replace(arm, candidate=(NNCF_INT8,)), **wish)


def test_it_is_measured_beside_the_others(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    others = Candidate(precision="int8", variant="pointwise-int8")
    target = replace(
        TARGET, candidate=(others, NNCF_INT8), bench=replace(TARGET.bench, warmup_s=0.0, min_duration_s=0.05)
    )
    wish = {"data": small_data, "num_samples": 16, "recipe": "fast", "autotune": True}
    artifact = api.export(small_model, target, "int8", tmp_path / "artifact", **wish)
    found = {one.variant: one for one in artifact.manifest.candidates}
    assert found.keys() == {"pointwise-int8", "nncf-int8"}
    assert all(one.latency_p50_ms and one.divergence is not None for one in found.values())
