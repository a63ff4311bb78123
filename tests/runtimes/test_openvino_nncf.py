"""NNCF's quantization as a candidate: planned from what it left, proven like any other, never required."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.contract import artifacts
from tests.contract.portable import relative
from vitedge.errors import NotInstalledError
from vitedge.runtimes.contract import BUDGET
from vitedge.runtimes.executed import unmet_layers
from vitedge.runtimes.openvino import nncf, placement
from vitedge.runtimes.session import open_session
from vitedge.target import Candidate, load_target

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
pytest.importorskip("nncf", reason="NNCF isn't installed")

TARGET = load_target("openvino")
FORM = Candidate(precision="int8", form="nncf-int8")


def test_it_runs_what_it_is_said_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wish = artifacts.request(TARGET, FORM)
    placed = artifacts.place(wish)
    assert capfd.readouterr().out == ""  # a program that prints JSON calls it
    planned = {layer.name: layer.precision for layer in placed.layers}
    assert {planned[f"blocks.{block}.{name}"] for block in (0, 1) for name in ("attn.qkv", "mlp.fc2")} == {"int8"}
    assert planned["blocks.0.attn.context"] == "fp32"
    assert {layer.reason for layer in placed.layers if layer.precision == "fp32"} == {"NNCF leaves it in float"}
    assert placed.built_with["nncf"] == nncf.installed()
    frames = np.random.default_rng(5).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    with open_session(artifacts.write(tmp_path / "artifact", wish, placed)) as session:
        assert unmet_layers(placed.layers, session.executed()) == []
        logits = np.stack([session.run(frame[None])[0] for frame in frames])
    assert relative(logits, artifacts.reference(frames)) < 0.2


def test_only_what_may_be_quantized_is() -> None:
    chosen = frozenset({"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"})
    placed = artifacts.place(dataclasses.replace(artifacts.request(TARGET, FORM), quantized=chosen))
    assert {layer.name for layer in placed.layers if layer.precision == "int8"} == chosen
    assert {layer.reason for layer in placed.layers if layer.name not in chosen} == {BUDGET}


def test_where_it_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nncf, "installed", lambda: None)
    with pytest.raises(NotInstalledError) as missing:
        artifacts.place(artifacts.request(TARGET, FORM))
    assert missing.value.exit_code == 8 and 'pip install "vitedge[nncf]"' in str(missing.value)
    assert placement.NEEDS["nncf-int8"] == "nncf"
