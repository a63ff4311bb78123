"""OpenVINO takes no activation across a MaxPool into the convolution before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vitedge.runtimes.openvino.detect import core
from vitedge.runtimes.openvino.pooling import with_adds_behind_pools

pytest.importorskip("openvino")

CHANNELS = 8
BEFORE = {
    "nothing": [],
    "a bias": ["Add"],
    "a scale": ["Mul"],
    "a normalisation": ["BatchNormalization"],
}


def pooled(before: list[str], activation: str) -> onnx.ModelProto:
    """A 3×3 convolution, what stands before the 2×2 MaxPool, and an activation behind it."""
    draw = np.random.default_rng(0)
    parameters = {
        "weight": draw.normal(0, 0.3, (CHANNELS, 3, 3, 3)),
        **{name: draw.normal(1, 1, (1, CHANNELS, 1, 1)) for name in ("Add", "Mul")},
        **{name: draw.uniform(0.5, 2, CHANNELS) for name in ("scale", "shift", "mean", "var")},
    }
    nodes = [helper.make_node("Conv", ["image", "weight"], ["conv"], name="conv", pads=[1] * 4)]
    last = "conv"
    for kind in before:
        others = ["scale", "shift", "mean", "var"] if kind == "BatchNormalization" else [kind]
        nodes.append(helper.make_node(kind, [last, *others], ["before"], name="before"))
        last = "before"
    nodes.append(helper.make_node("MaxPool", [last], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]))
    nodes.append(helper.make_node(activation, ["pool"], ["out"], name="activation"))
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in parameters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("activation", ["Gelu", "HardSwish", "Abs"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_an_activation_stays_behind_its_max_pool(before: list[str], activation: str) -> None:
    model = pooled(before, activation)
    image = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    outputs: Any = ReferenceEvaluator(model).run(None, {"image": image})
    expected = outputs[0]
    read = core().read_model(with_adds_behind_pools(model).SerializeToString())
    compiled = core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(
        compiled({"image": image})[compiled.output(0)], expected, atol=1e-5 * np.abs(expected).max()
    )


def test_no_add_where_none_is_needed() -> None:
    model = pooled([], "Relu")
    assert [node.op_type for node in with_adds_behind_pools(model).graph.node] == ["Conv", "MaxPool", "Relu"]
