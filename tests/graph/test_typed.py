"""Float16 where it pays: types are consistent, values stay near, and what can't be said in float16 is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import MEAN, STD, configs, random_arrays, random_images, tiny
from vitedge.errors import ModelError
from vitedge.formats.architecture import ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import array, initializers, to_bytes
from vitedge.graph.typed import HALF_SCALE_MIN, element_types, opset, to_half


def vit(config: ViTConfig, seed: int = 0) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config, seed=seed), mean=MEAN, std=STD)


def interpret(model: onnx.ModelProto, **inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def small(*nodes: onnx.NodeProto, constants: dict[str, NDArray[np.generic]], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A model x -> y, float32 of one shape, around some nodes."""
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(list(nodes), "small", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@given(configs(), st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_a_vit_in_float16_stays_near_itself(config: ViTConfig, seed: int) -> None:
    model = vit(config, seed)
    keep = {node.name for node in model.graph.node if node.op_type == "LayerNormalization"}
    half = to_half(model, keep=keep)
    images = random_images(config, 2)
    expected, received = interpret(model, image=images), interpret(half, image=images)
    assert received.dtype == np.float32
    assert np.abs(received - expected).max() < 0.02 * max(1.0, np.abs(expected).max())


def test_only_the_kept_nodes_compute_in_float32() -> None:
    model = vit(tiny())
    keep = {node.name for node in model.graph.node if node.op_type == "LayerNormalization"}
    half = to_half(model, keep=keep)
    types = element_types(half)
    floats = {node.name for node in half.graph.node if types[node.output[0]] == TensorProto.FLOAT}
    casts = {node.name for node in half.graph.node if node.op_type == "Cast"}
    assert floats - casts == keep
    assert types["image"] == TensorProto.UINT8 and types["logits"] == TensorProto.FLOAT
    assert {tensor.data_type for tensor in half.graph.initializer if tensor.name.startswith("blocks.0.mlp")} == {
        TensorProto.FLOAT16
    }
    original = [node.name for node in model.graph.node]
    assert [node.name for node in half.graph.node if node.name in original] == original
    assert set(initializers(half)) == set(initializers(model)), "constants keep their names"


def test_the_argument_is_left_alone() -> None:
    model = vit(tiny())
    before = to_bytes(model)
    to_half(model)
    assert to_bytes(model) == before


def test_a_constant_that_both_types_read_is_stored_in_both() -> None:
    model = small(
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "c"], ["y"], name="second"),
        constants={"c": np.float32([1.5, 2.5])},
        shape=(2,),
    )
    half = to_half(model, keep={"first"})
    stored = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert stored == {"c": TensorProto.FLOAT, "c.half": TensorProto.FLOAT16}
    np.testing.assert_array_equal(interpret(half, x=np.float32([1, 2])), [3.75, 11.25])


def test_an_output_that_is_also_read_inside() -> None:
    model = small(
        helper.make_node("Add", ["x", "c"], ["y"], name="first"),
        helper.make_node("Mul", ["y", "c"], ["z"], name="second"),
        constants={"c": np.float32([2.0])},
        shape=(1,),
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1,)))
    half = to_half(model)
    types = element_types(half)
    assert types["y"] == types["z"] == TensorProto.FLOAT and types["y.half"] == TensorProto.FLOAT16
    assert interpret(half, x=np.float32([3.0])) == 5.0


def test_slots_that_have_no_float16_form_stay_float32() -> None:
    model = small(
        helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize", mode="nearest"),
        constants={"scales": np.float32([1, 1])},
        shape=(2, 2),
    )
    assert initializers(to_half(model))["scales"].data_type == TensorProto.FLOAT


def test_values_in_attributes_are_typed_too() -> None:
    value = numpy_helper.from_array(np.float32([0.5, 0.25]), "value")
    model = small(
        helper.make_node("Constant", [], ["c"], name="constant", value=value),
        helper.make_node("Constant", [], ["d"], name="scalar", value_float=2.0),
        helper.make_node("Mul", ["x", "c"], ["m"], name="mul"),
        helper.make_node("Mul", ["m", "d"], ["y"], name="again"),
        constants={},
        shape=(2,),
    )
    half = to_half(model)
    assert element_types(half)["c"] == element_types(half)["d"] == TensorProto.FLOAT16
    np.testing.assert_array_equal(interpret(half, x=np.float32([4, 4])), [4, 2])


@given(st.lists(st.floats(2.0**-25, 1.0), min_size=3, max_size=3), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_int8_weights_follow_their_rounded_scales(scales: list[float], seed: int) -> None:
    scale = np.float32(scales)
    weights = np.random.default_rng(seed).integers(-127, 128, (5, 3)).astype(np.int8)
    model = small(
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="dq", axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"], name="linear"),
        constants={"w": weights, "s": scale, "z": np.zeros(3, np.int8)},
        shape=(5, 5),
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    stored = initializers(to_half(model))
    rounded = np.asarray(array(stored["s"]), np.float64)
    assert array(stored["s"]).dtype == np.float16 and (rounded >= HALF_SCALE_MIN).all()
    error = np.abs(array(stored["w"]) * rounded - weights.astype(np.float64) * scale)
    assert (error <= rounded * 0.5001 + 127 * scale * 2.0**-7 * (scale < 2.0**-14) + 127 * scale * 2.0**-11).all()


def test_refusals() -> None:
    add = helper.make_node("Add", ["x", "c"], ["y"], name="add")
    with pytest.raises(ModelError, match=r"'c' holds 70000; float16 ends at 65504"):
        to_half(small(add, constants={"c": np.float32([7e4])}, shape=(1,)))
    with pytest.raises(ModelError, match=r"'c' holds nan"):
        to_half(small(add, constants={"c": np.float32([np.nan])}, shape=(1,)))
    quantize = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    with pytest.raises(ModelError, match="a scale of node 'q' is too small for float16"):
        to_half(small(*quantize, constants={"s": np.float32(1e-9), "z": np.int8(0)}, shape=(1,)))
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"], name="neg")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, (1,))],
    )
    choice = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match=r"node 'choice' \(If\) holds a graph of its own"):
        to_half(small(choice, constants={"c": np.asarray(True)}, shape=(1,)))
    with pytest.raises(ModelError, match=r"opset 20 has no operator Foo \(node 'foo'\)"):
        to_half(small(helper.make_node("Foo", ["x"], ["y"], name="foo"), constants={}, shape=(1,)))


def test_opset_of_a_model_without_one() -> None:
    assert opset(onnx.ModelProto()) == 0
