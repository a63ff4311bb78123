"""Linears as pointwise convolutions: the same arithmetic, in integers, and no data moved for it."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.contract import artifacts
from tests.contract.portable import relative
from tests.runtimes.test_openvino import types_of
from vitedge.formats.target import Candidate, load_target
from vitedge.graph.surgery import linear_layers, producers
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import QuantizedLayer, Scheme, quantize_layers
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.openvino.detect import core
from vitedge.runtimes.openvino.pointwise import pointwise_linears, without_undone_transposes
from vitedge.runtimes.session import open_session

pytest.importorskip("openvino", reason="OpenVINO isn't installed")
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="INT8 convolutions are OpenVINO's on x86 alone")

TARGET = load_target("openvino")
POINTWISE = Candidate(precision="int8", variant="pointwise-int8")
FRAMES = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)


def test_the_arithmetic_is_that_of_the_linears() -> None:
    wish = artifacts.request(TARGET, POINTWISE)
    assert wish.statistics is not None and wish.recipe is not None
    scheme = Scheme("uint8", symmetric=False, wide_sums=False)
    plain, layers = quantize_layers(wish.graph, wish.statistics, wish.recipe, scheme)
    typed = insert_qdq(plain, layers)
    shaped = pointwise_linears(typed, plain, layers)
    onnx.checker.check_model(shaped, full_check=True)
    kinds = {node.name: node.op_type for node in shaped.graph.node}
    assert {kinds[name] for name in layers} == {"Conv"}
    assert "blocks.0.mlp.fc1.channels_last" not in kinds  # nothing between it and fc2 but GELU and its quantization
    assert "blocks.0.attn.qkv.channels_last" in kinds
    assert relative(run_graph(shaped, FRAMES), run_graph(typed, FRAMES)) < 1e-5


@x86
def test_planned_layers_run_in_integers_and_nothing_is_moved_for_them(tmp_path: Path) -> None:
    wish = artifacts.request(TARGET, POINTWISE)
    artifact = artifacts.write(tmp_path / "artifact", wish, lowered := artifacts.lower(wish))
    with open_session(artifact) as session:
        executed = session.executed()
        found = [session.run(frame[None]) for frame in FRAMES]
    types = {node.name: node.type for node in executed}
    for layer in lowered.layers:
        if layer.precision == "int8":
            assert types[layer.name] == "int8"
    moved = [node.name for node in executed if node.operator == "Transpose" and "channels" in node.name]
    assert not moved
    assert lowered.interpretable is not None
    expected = [run_graph(lowered.interpretable, frame[None]) for frame in FRAMES]
    differences = sorted(relative(*pair) for pair in zip(found, expected, strict=True))
    assert differences[len(FRAMES) // 2] < 1e-6 and differences[-1] < 2e-2, "an integer is seldom rounded otherwise"


def test_layers_that_the_budget_leaves_in_float_stay_linears() -> None:
    chosen = frozenset({"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"})
    lowered = artifacts.lower(dataclasses.replace(artifacts.request(TARGET, POINTWISE), quantized=chosen))
    model = core().read_model(lowered.files["model.xml"], lowered.files["model.bin"])
    layers = {layer.name for layer in lowered.layers if layer.kind == "linear"}
    kinds: dict[str, set[str]] = {name: set() for name in layers}
    for node in model.get_ops():  # OpenVINO's importer makes several of one node, and names them after it
        if (name := node.get_friendly_name().split("/")[0]) in layers:
            kinds[name].add(node.get_type_name())
    assert {name for name, found in kinds.items() if "Convolution" in found} == chosen
    assert {name for name, found in kinds.items() if "MatMul" in found} == layers - chosen
    assert {layer.name for layer in lowered.layers if layer.precision == "int8"} == chosen


@x86
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Gemm, transposed"])
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_products_are_exact_at_their_extremes(operator: str, axes: int) -> None:
    """u8 by s8 whose neighbours add up to 128 at most, against integers in numpy: no 16-bit sum saturates anywhere."""
    if operator != "MatMul" and axes != 2:
        pytest.skip("a Gemm reads two axes")
    random = np.random.default_rng(0)
    rows = {2: (1, 96), 3: (1, 5, 96), 4: (1, 2, 5, 96)}[axes]
    first = random.integers(1, 128, (48, 16))
    pairs = np.stack([first, 128 - first], axis=1).reshape(96, 16)
    for weights in (np.full((96, 16), 64), np.full((96, 16), -64), pairs, -pairs, random.integers(-63, 64, (96, 16))):
        levels = np.full(rows, 255) if abs(weights.sum()) == 48 * 128 * 16 else random.integers(0, 256, rows)
        plain, layer = _layer(weights.astype(np.int8), rows, operator)
        model = pointwise_linears(insert_qdq(plain, {"linear": layer}), plain, {"linear"})
        onnx.checker.check_model(model, full_check=True)
        compiled = core().compile_model(
            core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled({0: ((levels - 37) * np.float32(0.02)).astype(np.float32)})[0]
        expected = ((levels - 37) @ weights) * 0.02 * 0.5 + np.arange(16)
        assert found.shape == expected.shape and relative(found, expected) < 1e-6
        assert types_of(compiled, "linear") <= {"u8", "i8"}


def _layer(weights: np.ndarray, rows: tuple[int, ...], operator: str) -> tuple[onnx.ModelProto, QuantizedLayer]:
    """A float graph of one linear with bias, and the linear in integers: input scale 0.02, zero point 37."""
    transposed = operator.endswith("transposed")
    stored = weights.T.copy() if transposed else weights
    constants = {"w": (stored * 0.5).astype(np.float32), "b": np.arange(16, dtype=np.float32)}
    if operator == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="linear"),
            helper.make_node("Add", ["product", "b"], ["y"], name="linear.bias"),
        ]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="linear", transB=int(transposed))]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (*rows[:-1], 16))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    layer = QuantizedLayer(
        name="linear",
        kind="linear",
        input="x",
        input_scale=float(np.float32(0.02)),
        input_zero_point=37,
        input_type="uint8",
        weight=stored,
        weight_scale=np.full(16, 0.5, np.float32),
        bias=constants["b"],
        channel_axis=linear_layers(model)[0].channel_axis,
    )
    return model, layer


@given(first=st.permutations(range(3)), second=st.permutations(range(3)), between=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_transposes_that_undo_each_other_go(first: list[int], second: list[int], between: int) -> None:
    model = _transposed(first, second, between)
    found = without_undone_transposes(model)
    undone = [first[axis] for axis in second] == [0, 1, 2]
    kept = [node for node in found.graph.node if node.op_type == "Transpose"]
    assert len(kept) == (0 if undone else 2)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert np.array_equal(_run(found, x), _run(model, x))


def test_transposes_that_others_need_stay() -> None:
    swap = [0, 2, 1]
    for change in ("another reader", "an output", "a scale per channel"):
        model = _transposed(swap, swap, 1, change)
        found = without_undone_transposes(model)
        assert [node.op_type for node in found.graph.node].count("Transpose") == 2, change
        assert producers(found).keys() == producers(model).keys()


def _transposed(first: list[int], second: list[int], between: int, change: str = "") -> onnx.ModelProto:
    """x [2, 3, 4] -> Transpose -> so many operators (Relu, QuantizeLinear, DequantizeLinear) -> Transpose -> Neg."""
    shape = np.transpose(np.empty((2, 3, 4)), first).shape
    scale, zero = np.full((), 0.05, np.float32), np.full((), 128, np.uint8)
    if change == "a scale per channel":
        scale, zero = np.full(shape[1], 0.05, np.float32), np.full(shape[1], 128, np.uint8)
        between = 3
    words = ["Relu", "QuantizeLinear", "DequantizeLinear"][:between]
    if between == 2:
        words = ["QuantizeLinear", "DequantizeLinear"]
    nodes, x = [helper.make_node("Transpose", ["x"], ["t0"], "first", perm=first)], "t0"
    for number, word in enumerate(words, 1):
        more = ["s", "z"] if word != "Relu" else []
        attributes = {"axis": 1} if more else {}
        nodes.append(helper.make_node(word, [x, *more], [f"t{number}"], word, **attributes))
        x = f"t{number}"
    nodes += [
        helper.make_node("Transpose", [x], ["back"], "second", perm=second),
        helper.make_node("Neg", ["back"], ["y"], "end"),
    ]
    final = np.transpose(np.empty(shape), second).shape
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, final)]
    if change == "an output":
        outputs.append(helper.make_tensor_value_info("t1", TensorProto.FLOAT, shape))
    elif change == "another reader":
        nodes.append(helper.make_node("Neg", ["t0"], ["z0"], "reader"))
        outputs.append(helper.make_tensor_value_info("z0", TensorProto.FLOAT, shape))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4))]
    constants = [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")]
    graph = helper.make_graph(nodes, "transposed", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model).run(["y"], {"x": x})[0])
