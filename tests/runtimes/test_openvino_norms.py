"""OpenVINO executes a LayerNorm and the rounding behind it as one operator, which computes the same numbers."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import vitedge
from vitedge.formats.model_folder import Model
from vitedge.runtimes.openvino.detect import core

pytest.importorskip("openvino")


def test_the_norms_round_what_they_write(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    """The blocks' outputs are bytes, and no operator beside them scales or rounds. The last norm has one row alone."""
    artifact = vitedge.export(small_model, "openvino", "int8", tmp_path / "artifact", data=small_data)
    compiled = core().compile_model(artifact.path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [
        {key: str(node.get_rt_info()[key].value) for key in ("layerType", "originalLayersNames", "outputPrecisions")}
        for node in compiled.get_runtime_model().get_ops()
        if node.get_type_name() not in ("Constant", "Result")
    ]
    norms = [each["outputPrecisions"] for each in facts if each["layerType"] == "MVN"]
    graph = onnx.load(Model.open(small_model).onnx_path)
    count = sum(node.op_type == "LayerNormalization" for node in graph.graph.node)
    assert sorted(norms) == ["f32", *["u8"] * (count - 1)]
    apart = [each for each in facts if each["layerType"] == "Subgraph" and "norm" in each["originalLayersNames"]]
    assert not apart
