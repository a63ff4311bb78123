"""Q/DQ that TensorRT wouldn't fuse: a planted graph for each rule, and graphs in which all of them would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ml_dtypes import float8_e4m3fn
from onnx import numpy_helper, parser

from vitedge.reporting.inspection import inspect
from vitedge.runtimes._nvidia.fusing import sentences, unfused

CONSTANTS = {
    "s": np.float32(0.5),
    "t": np.float32(0.25),
    "per_channel": np.full(16, 0.5, np.float32),
    "w": np.ones((16, 16, 1, 1), np.int8),
    "depthwise": np.ones((16, 1, 3, 3)).astype(float8_e4m3fn),
    "large": np.ones((16, 16, 7, 7)).astype(float8_e4m3fn),
    "square": np.ones((16, 16), np.int8),
    "b": np.ones((16, 1, 1), np.float32),
    "flat": np.array([1, 16, 64], np.int64),
}
QUANTIZED = "{0}.q = QuantizeLinear ({0}, s) {0}.dq = DequantizeLinear ({0}.q, s) "
WEIGHT = "w.dq = DequantizeLinear <axis = 0> (w, per_channel) "
#: A quantized convolution of x, its bias, and its input's pair.
CONV = QUANTIZED.format("x") + WEIGHT + "c = Conv (x.dq, w.dq) "

#: By rule: what is planted into a graph from x to y.
PLANTED = {
    "pair: a DQ alone": ("pair", "i = Cast <to = 3> (x) y = DequantizeLinear (i, s)"),
    "pair: a Q alone": ("pair", "q = QuantizeLinear (x, s) y = Cast <to = 1> (q)"),
    "inputs: weights alone": ("inputs", WEIGHT + "y = Conv (x, w.dq)"),
    "inputs: no weights": ("inputs", QUANTIZED.format("x") + "v = Cast <to = 1> (w) y = Conv (x.dq, v)"),
    "inputs: one side of attention": ("inputs", QUANTIZED.format("x") + "y = MatMul (x.dq, x)"),
    "weight-axis": (
        "weight-axis",
        QUANTIZED.format("x") + "v = DequantizeLinear <axis = 0> (square, per_channel) y = MatMul (x.dq, v)",
    ),
    "useless: around a reshape": ("useless", QUANTIZED.format("x") + "r = Reshape (x.dq, flat) y = Softmax (r)"),
    "useless: around a transposition": (
        "useless",
        QUANTIZED.format("x") + "r = Transpose <perm = [0, 2, 3, 1]> (x.dq) y = Gelu (r)",
    ),
    "twice": (
        "twice",
        QUANTIZED.format("x")
        + WEIGHT
        + "r = Transpose <perm = [0, 1, 3, 2]> (x.dq) q = QuantizeLinear (r, t) d = DequantizeLinear (q, t)"
        + " y = Conv (d, w.dq)",
    ),
    "outputs": ("outputs", CONV + QUANTIZED.format("c") + "y = Relu (c.dq)"),
    "residual: one branch alone": ("residual", QUANTIZED.format("x") + "g = Gelu (x) y = Add (x.dq, g)"),
    "residual: float where the sum is quantized": (
        "residual",
        CONV + "a = Add (c, x)" + QUANTIZED.format("a") + "y = Conv (a.dq, w.dq)",
    ),
    "residual: a second pair": (
        "residual",
        CONV + QUANTIZED.format("c") + "a = Add (c.dq, x.dq)" + QUANTIZED.format("a") + "y = Conv (a.dq, w.dq)",
    ),
    "non-weighted: an addition": (
        "non-weighted",
        CONV + "z = Relu (x)" + QUANTIZED.format("z") + "y = Add (z.dq, x.dq)",
    ),
    "non-weighted: pooling": ("non-weighted", QUANTIZED.format("x") + "y = GlobalAveragePool (x.dq)"),
    "one-scale": (
        "one-scale",
        CONV + "q = QuantizeLinear (x, t) d = DequantizeLinear (q, t) e = Conv (d, w.dq) y = Concat <axis = 1> (c, e)",
    ),
    "fp8-convolution: depthwise": (
        "fp8-convolution",
        QUANTIZED.format("x") + "v = DequantizeLinear (depthwise, s) y = Conv <group = 16> (x.dq, v)",
    ),
    "fp8-convolution: a large kernel": (
        "fp8-convolution",
        QUANTIZED.format("x") + "v = DequantizeLinear (large, s) y = Conv (x.dq, v)",
    ),
}

FUSED = {
    "nothing quantized": "y = Relu (x)",
    "a convolution, its bias and its activation": CONV + "a = Add (c, b) y = Gelu (a)",
    "two, whose activation is quantized": CONV + "a = Relu (c)" + QUANTIZED.format("a") + "y = Conv (a.dq, w.dq)",
    "its residual branch is quantized": CONV + "a = Add (c, x.dq)" + QUANTIZED.format("a") + "y = Conv (a.dq, w.dq)",
    "its residual branch is quantized, the sum isn't": CONV + "y = Add (c, x.dq)",
    "its residual branch is float, and so is the sum": CONV + "a = Add (c, x) y = Softmax (a)",
    "a reshape in front of what multiplies": (
        QUANTIZED.format("x")
        + "r = Reshape (x.dq, flat) v = DequantizeLinear <axis = 0> (square, s) p = Transpose <perm = [0, 2, 1]> (r)"
        + " y = MatMul (p, v)"
    ),
    "max pooling commutes": QUANTIZED.format("x")
    + WEIGHT
    + "p = MaxPool <kernel_shape = [2, 2]> (x.dq) y = Conv (p, w.dq)",
    "pooling between pairs": (
        QUANTIZED.format("x")
        + WEIGHT
        + "p = GlobalAveragePool (x.dq)"
        + QUANTIZED.format("p")
        + "y = Conv (p.dq, w.dq)"
    ),
}


def graph(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 9, opset_import: ["": 20]> g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {{ {body} }}'
    model = parser.parse_model(text.replace(".", "_").replace(" (", "("))
    for node in model.graph.node:
        node.name = node.output[0]
    read = {name for node in model.graph.node for name in node.input}
    for name, values in CONSTANTS.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


@pytest.mark.parametrize("planted", PLANTED)
def test_each_rule_finds_what_is_planted_and_nothing_else(planted: str) -> None:
    rule, body = PLANTED[planted]
    found = unfused(graph(body))
    assert [each.rule for each in found] == [rule]
    assert sentences(graph(body)) == [f"TensorRT wouldn't fuse Q/DQ ({rule}): {found[0].problem}."]
    assert found[0].node in found[0].problem


@pytest.mark.parametrize("name", FUSED)
def test_what_fuses_is_left_alone(name: str) -> None:
    assert unfused(graph(FUSED[name])) == []


def test_every_rule_of_the_table_is_planted() -> None:
    from vitedge.runtimes._nvidia import fusing

    table = (fusing.__doc__ or "").split("=\n")[2].split("\n====")[0]
    assert {line.split(" ")[0] for line in table.splitlines() if line[:1].strip()} == {
        rule for rule, _ in PLANTED.values()
    }


def test_constants_may_be_nodes() -> None:
    weight = "w = Constant <value = int8[1,1,1,1] {1}> () s = Constant <value = float {1}> ()"
    body = f"{weight} q = QuantizeLinear (x, s) d = DequantizeLinear (q, s) v = DequantizeLinear (w, s) y = Conv (d, v)"
    assert unfused(graph(body)) == []


def test_inspect_says_it_of_any_onnx_file(tmp_path: Path) -> None:
    onnx.save(graph(PLANTED["inputs: weights alone"][1]), tmp_path / "planted.onnx")
    facts = inspect(tmp_path / "planted.onnx").facts
    assert (
        facts["Q/DQ in TensorRT"]
        == "TensorRT wouldn't fuse Q/DQ (inputs): y has Q/DQ on its weights and none on its input."
    )
    onnx.save(graph(FUSED["nothing quantized"]), tmp_path / "float.onnx")
    assert "Q/DQ in TensorRT" not in inspect(tmp_path / "float.onnx").facts
