"""Typed graphs for TensorRT: what they compute, what they look like, and what our tables refuse."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.outliers import CASES
from tests.conftest import ROOT
from tests.graph.vits import MEAN, STD, random_arrays, tiny
from tests.runtimes.typed_vits import deviation, embedded, interpret, pictures, request, residual_network
from vitedge import runtimes
from vitedge.data import embedded as shipped
from vitedge.data.images import ImageSet
from vitedge.errors import UsageError
from vitedge.formats.architecture import BlockWidths, ConvStem, ViTConfig
from vitedge.formats.model_folder import read_model_record
from vitedge.formats.target import load_target
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import batch_size, get_metadata, initializers, linear_layers, parse, to_bytes
from vitedge.graph.typed import element_types
from vitedge.runtimes._nvidia.fusing import unfused
from vitedge.runtimes._nvidia.lowering import centre_pixels, inner_layers
from vitedge.runtimes.base import BUDGET, Lowered, Request
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.lowering import IN_EVERY_BLOCK

#: As shrinking leaves them: unequal and odd heads, and branches that are gone.
NARROW = (
    BlockWidths(heads=3, query_key=8, value=12, mlp_hidden=24),
    BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=17),
    BlockWidths(heads=2, query_key=5, value=3, mlp_hidden=0),
)
CONFIGS = {
    "plain": tiny(),
    "conv stem": tiny(stem=ConvStem(channels=(8, 12), strides=(4, 2))),
    "wide conv stem": tiny(stem=ConvStem(channels=(16, 24, 32), strides=(4, 2, 1))),
    "distilled, registers, LayerScale": tiny(distillation_token=True, register_tokens=2, layer_scale=True),
    "widths of each block": tiny(depth=3, blocks=NARROW),
    "QK-norm, average pooling": tiny(qk_norm=True, pool="avg", final_norm="fc_norm", activation="gelu_tanh"),
}


#: How near to float32 random weights come; E4M3 has three bits of mantissa.
NEAR = [("fp32", 1e-6), ("fp16", 0.01), ("int8", 0.1), ("fp8", 0.2)]


def lower(
    precision: str, config: ViTConfig, *, batch: int = 1, target: str = "tensorrt"
) -> tuple[Lowered, onnx.ModelProto]:
    graph = author_vit(config, random_arrays(config, folded_stem=True), mean=MEAN, std=STD)
    wish = request(graph, config, precision, target, images=pictures(config, 8), batch=batch)
    return runtimes.part("tensorrt", "lowering").lower(wish), graph


def check(graph: onnx.ModelProto | bytes, target: str = "jetson-orin-nano", **changes: object) -> list[str]:
    data = graph if isinstance(graph, bytes) else to_bytes(graph)
    found: list[str] = runtimes.part("tensorrt", "preflight").check(data, replace(load_target(target), **changes))
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("precision", "near"), NEAR)
def test_a_typed_graph_passes_the_table_and_computes_nearly_the_same(name: str, precision: str, near: float) -> None:
    config = CONFIGS[name]
    lowered, graph = lower(precision, config)
    assert check(lowered.files[lowered.graph], "jetson-thor") == []
    assert lowered.interpretable is not None
    images = pictures(config, 6, seed=9)
    assert deviation(interpret(lowered.interpretable, images), interpret(graph, images)) < near


def test_the_file_is_the_interpreted_graph_with_its_batch_pinned_and_its_contract() -> None:
    lowered, _ = lower("fp16", tiny(), batch=3)
    model = parse(lowered.files["model.onnx"])
    assert (batch_size(model), model.ir_version, model.opset_import[0].version) == (3, 9, 20)
    assert "vitedge.classes" in " ".join(get_metadata(model))
    assert lowered.interpretable is not None and batch_size(lowered.interpretable) is None
    assert [node.SerializeToString() for node in model.graph.node] == [
        node.SerializeToString() for node in lowered.interpretable.graph.node
    ]


def test_equal_requests_give_equal_bytes() -> None:
    first, second = (lower("int8", tiny())[0] for _ in range(2))
    assert first.files == second.files and first.layers == second.layers


def test_fp16_computes_everything_behind_the_picture_in_float16_but_layernorm() -> None:
    lowered, _ = lower("fp16", tiny())
    model = parse(lowered.files[lowered.graph])
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv", "Softmax", "Gelu", "Add"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
        if node.op_type == "LayerNormalization":
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    assert types["image"] == TensorProto.UINT8 and types["logits"] == TensorProto.FLOAT
    assert {layer.precision for layer in lowered.layers} == {"fp16"}
    assert sum(layer.macs for layer in lowered.layers) == tiny().macs()


def test_int8_quantizes_the_linears_of_the_blocks_and_nothing_else() -> None:
    config = tiny(distillation_token=True)
    lowered, graph = lower("int8", config)
    quantized = {layer.name for layer in lowered.layers if layer.precision == "int8"}
    expected = {f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert quantized == expected == set(inner_layers(graph)) - {"patch_embed.proj"}
    reasons = {layer.name: layer.reason for layer in lowered.layers if layer.precision == "fp16"}
    assert reasons["patch_embed.proj"] == "fewer than 16 channels gain nothing in int8"
    assert reasons["head"] == reasons["head_dist"] == "the head stays fp16"
    assert reasons["blocks.1.attn.scores"] == "attention stays fp16"

    model = parse(lowered.files[lowered.graph])
    types, constants = element_types(model), initializers(model)
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) == 3 * len(expected), "a pair for each activation, one for each weight"
    for node in nodes:
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        assert scale.dtype == np.float16 and zero.dtype == np.int8 and not zero.any()
        assert (scale.size > 1) == (node.input[0] in constants), "channels in weights, one scale for activations"
    biases = {layer.bias for layer in linear_layers(graph)}
    assert {types[name] for name in biases if name in types} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_convolutions_are_quantized_by_rule(precision: str) -> None:
    config = CONFIGS["wide conv stem"]
    graph = author_vit(config, random_arrays(config, folded_stem=True), mean=MEAN, std=STD)
    wish = request(graph, config, precision, "jetson-thor", images=pictures(config, 8))
    wish = dataclasses.replace(wish, candidate=wish.target.candidates(precision)[0])
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    layers = {layer.name: layer for layer in lowered.layers}
    quantized = {name for name, layer in layers.items() if layer.precision == precision}
    stem = [f"patch_embed.stem.{index}.conv" for index in range(3)]
    assert quantized == {*inner_layers(graph)} - {stem[0], "patch_embed.proj"}
    assert layers[stem[0]].reason == f"fewer than 16 channels gain nothing in {precision}"
    assert layers["patch_embed.proj"].reason == IN_EVERY_BLOCK
    model = parse(lowered.files[lowered.graph])
    assert check(lowered.files[lowered.graph], "jetson-thor") == [] and unfused(model) == []
    constants, nodes = initializers(model), {node.name: node for node in model.graph.node}
    weight = nodes[f"{stem[1]}.weight.dq"]
    scale = numpy_helper.to_array(constants[weight.input[1]])
    assert scale.shape == ((24,) if precision == "int8" else ())
    assert nodes[stem[1]].input[:2] == [f"{stem[1]}.input.dq.out", weight.output[0]]
    images = pictures(config, 6, seed=9)
    assert lowered.interpretable is not None
    assert deviation(interpret(lowered.interpretable, images), interpret(graph, images)) < dict(NEAR)[precision]
    without = dataclasses.replace(wish, quantized=frozenset(quantized - {stem[1]}))
    left = {layer.name: layer for layer in runtimes.part("tensorrt", "lowering").lower(without).layers}
    assert left[stem[1]].precision == "fp16" and left[stem[1]].reason == BUDGET


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_residual_branches_are_quantized_where_they_meet(precision: str) -> None:
    config, graph = tiny(), residual_network()
    wish = request(graph, config, precision, "jetson-thor", images=pictures(config, 8))
    wish = dataclasses.replace(wish, candidate=wish.target.candidates(precision)[0])
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    assert lowered.interpretable is not None
    nodes = {node.name: node for node in lowered.interpretable.graph.node}
    assert list(nodes["a.sum"].input) == ["a.conv2.out", "a.conv1.input.dq.out"]
    assert nodes["b.conv"].input[0] == nodes["b.shortcut"].input[0], "one tensor, one scale, one pair"
    assert list(nodes["c.sum"].input) == ["c.conv2.out", "c.conv2.input.dq.out"], "a branch that a convolution writes"
    layers = {layer.name: layer for layer in lowered.layers}
    assert layers["dw.conv"].reason == "grouped convolution"
    assert {name for name, layer in layers.items() if layer.precision == precision} == {
        *("a.conv1", "a.conv2", "b.conv", "b.shortcut", "c.conv1", "c.conv2", "c.conv3")
    }
    assert unfused(lowered.interpretable) == [] and check(lowered.files[lowered.graph], "jetson-thor") == []
    images = pictures(config, 6, seed=9)
    assert deviation(interpret(lowered.interpretable, images), interpret(graph, images)) < dict(NEAR)[precision]


@pytest.mark.parametrize("head", ["Gemm", "Conv"])
def test_the_head_stays_float_whatever_it_is(head: str) -> None:
    wish = request(residual_network(head), tiny(), "int8", images=pictures(tiny(), 4))
    layers = {layer.name: layer for layer in runtimes.part("tensorrt", "lowering").lower(wish).layers}
    assert (layers["head"].precision, layers["head"].reason) == ("fp16", "the head stays fp16")


def test_int8_covers_most_of_the_embedded_model() -> None:
    graph, config = embedded()
    wish = request(graph, config, "int8", "jetson-orin-nano", images=pictures(config, 8))
    layers = runtimes.part("tensorrt", "lowering").lower(wish).layers
    total = sum(layer.macs for layer in layers)
    assert sum(layer.macs for layer in layers if layer.precision == "int8") >= 0.85 * total


def test_fp8_quantizes_the_same_layers_with_one_scale_a_tensor() -> None:
    config = tiny(distillation_token=True)
    lowered, graph = lower("fp8", config, target="jetson-thor")
    quantized = {layer.name for layer in lowered.layers if layer.precision == "fp8"}
    assert quantized == set(inner_layers(graph)) - {"patch_embed.proj"}
    model = parse(lowered.files[lowered.graph])
    constants = initializers(model)
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) == 3 * len(quantized)
    for node in nodes:
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        assert scale.dtype == np.float16 and scale.shape == zero.shape == ()
        assert constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN
    refused = check(lowered.files[lowered.graph], "jetson-orin-nano")
    assert refused == ["float8e4m3fn needs compute capability 8.9; this target has 8.7"]


@functools.cache
def held_out() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """The embedded model's calibration pictures, its held-out ones, their labels, and the float32 logits."""
    graph, _ = embedded()
    record = read_model_record(shipped.FOLDER, "read the embedded model")
    calibration, held_out = shipped.pictures("calibration"), shipped.pictures("held-out")

    def frames(images: ImageSet, count: int) -> NDArray[np.uint8]:
        return np.stack([record.preprocessing.apply(images.read(index)) for index in range(count)])

    labels = held_out.labels([label.folder for label in record.classes], action="test")
    images = frames(held_out, len(held_out))
    return frames(calibration, 256), images, labels, run_graph(graph, images)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_the_typed_arithmetic_stays_within_the_budget(precision: str) -> None:
    """What TensorRT receives, interpreted operator by operator, on pictures that calibration never saw."""
    graph, config = embedded()
    calibration, images, labels, expected = held_out()
    wish = request(graph, config, precision, "tensorrt", images=calibration, by="default")
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    assert lowered.interpretable is not None
    received = run_graph(lowered.interpretable, images)
    lost = 100 * float(np.mean(expected.argmax(1) == labels) - np.mean(received.argmax(1) == labels))
    assert lost <= wish.target.budget.max_top1_drop_pp
    assert np.mean(expected.argmax(1) != received.argmax(1)) <= {"fp16": 0.002}.get(precision, 0.02)


def test_centred_pixels_are_the_same_function() -> None:
    config = tiny()
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    images = pictures(config, 4)
    centred = centre_pixels(graph)
    assert len(centred.graph.node) == len(graph.graph.node) + 1
    assert deviation(interpret(centred, images), interpret(graph, images)) < 1e-5
    stem = author_vit(CONFIGS["conv stem"], random_arrays(CONFIGS["conv stem"]), mean=MEAN, std=STD)
    assert centre_pixels(stem) is stem, "padding is no pixel: there the mean is subtracted by its own node"


def test_centred_pixels_make_float16_more_exact() -> None:
    from vitedge.graph.typed import to_half

    config = tiny(image_size=(64, 64), stem=tiny().stem, embed_dim=48)
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    images = pictures(config, 8)
    expected = interpret(graph, images)
    norms = {node.name for node in graph.graph.node if node.op_type == "LayerNormalization"}
    plain = deviation(interpret(to_half(graph, keep=norms), images), expected)
    centred = deviation(interpret(to_half(centre_pixels(graph), keep=norms), images), expected)
    assert centred < plain


def test_runtime_options_are_explicit() -> None:
    lowered, _ = lower("fp32", tiny())
    assert lowered.runtime_options == {"strongly_typed": True, "tf32": False}


def test_an_unknown_form_is_refused_with_the_nearest() -> None:
    config = tiny()
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    wish = request(graph, config, "fp16")
    wish = dataclasses.replace(wish, candidate=replace(wish.candidate, variant="fp61"))
    with pytest.raises(UsageError, match="TensorRT has no kernel variant of this name; the nearest is 'fp16'"):
        runtimes.part("tensorrt", "lowering").lower(wish)


@pytest.mark.parametrize(("precision", "near"), NEAR)
def test_the_embedded_model_passes_and_computes_nearly_the_same(precision: str, near: float) -> None:
    graph, config = embedded()
    wish = request(graph, config, precision, "jetson-thor", images=pictures(config, 8, seed=2))
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    assert check(lowered.files[lowered.graph], "jetson-thor") == []
    assert lowered.interpretable is not None
    images = pictures(config, 8)
    assert deviation(interpret(lowered.interpretable, images), interpret(graph, images)) < near


# --- refusals --------------------------------------------------------------------------------------------------------


def model(
    *nodes: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]] | None = None,
    kind: int = TensorProto.FLOAT,
    shape: Iterable[int | str] = (2, 4),
    opset: int = 20,
    ir: int = 9,
) -> onnx.ModelProto:
    """x -> y around some nodes."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    values = [helper.make_tensor_value_info(name, kind, list(shape)) for name in "xy"]
    graph = helper.make_graph(list(nodes), "small", values[:1], values[1:], tensors)
    domains = {node.domain for node in nodes} | {""}
    imports = [helper.make_opsetid(domain, 1 if domain else opset) for domain in sorted(domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def node(operator: str, *inputs: str, out: str = "y", name: str = "n", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [out], name=name, **attributes)


def qdq(zero: np.generic | NDArray[np.generic], scale: object = np.float32(0.1)) -> onnx.ModelProto:
    return model(
        node("QuantizeLinear", "x", "s", "z", out="q", name="q"),
        node("DequantizeLinear", "q", "s", "z", name="dq"),
        constants={"s": np.asarray(scale, np.float32), "z": np.asarray(zero)},
    )


FLOATS = "bfloat16, float16, float32"
ALL = "bfloat16, bool, float16, float32, int32, int64"
QUANTIZED = "float8e4m3fn, int4, int8"

REFUSED = {
    "int32 DQ bias": (
        model(
            node("DequantizeLinear", "b", "s", out="f", name="head.bias.dq"),
            node("Add", "x", "f"),
            constants={"b": np.arange(4, dtype=np.int32), "s": np.float32(0.1)},
        ),
        [f"node 'head.bias.dq' (DequantizeLinear): input 0 'b' is int32; TensorRT 10.3 takes {QUANTIZED}"],
    ),
    "asymmetric zero point": (
        qdq(np.int8(3)),
        [
            "node 'q' (QuantizeLinear): the zero point isn't 0; TensorRT quantizes symmetrically",
            "node 'dq' (DequantizeLinear): the zero point isn't 0; TensorRT quantizes symmetrically",
        ],
    ),
    "uint8 quantization": (
        qdq(np.uint8(0)),
        [
            f"node 'q' (QuantizeLinear): input 2 'z' is uint8; TensorRT 10.3 takes {QUANTIZED}",
            f"node 'q' (QuantizeLinear): output 'q' is uint8; TensorRT 10.3 takes {QUANTIZED}",
            f"node 'dq' (DequantizeLinear): input 0 'q' is uint8; TensorRT 10.3 takes {QUANTIZED}",
            f"node 'dq' (DequantizeLinear): input 2 'z' is uint8; TensorRT 10.3 takes {QUANTIZED}",
        ],
    ),
    "activation scales per channel": (
        qdq(np.zeros(4, np.int8), [0.1, 0.2, 0.3, 0.4]),
        [
            "node 'q' (QuantizeLinear): scales per channel are for weights; activations have one",
            "node 'dq' (DequantizeLinear): scales per channel are for weights; activations have one",
        ],
    ),
    "negative scale": (
        qdq(np.int8(0), -0.1),
        ["node 'q' (QuantizeLinear): a scale isn't positive", "node 'dq' (DequantizeLinear): a scale isn't positive"],
    ),
    "uint8 Transpose": (
        model(node("Transpose", "x", perm=[0, 1]), kind=TensorProto.UINT8),
        [
            f"node 'n' (Transpose): input 0 'x' is uint8; TensorRT 10.3 takes {ALL}",
            f"node 'n' (Transpose): output 'y' is uint8; TensorRT 10.3 takes {ALL}",
        ],
    ),
    "uint8 inside": (
        model(
            node("Cast", "x", out="u", name="down", to=TensorProto.UINT8),
            node("Cast", "u", name="up", to=TensorProto.FLOAT),
        ),
        [
            "node 'down' (Cast): 'u' is uint8, which TensorRT 10.3 has only at the graph's inputs and outputs",
            "node 'up' (Cast): 'u' is uint8, which TensorRT 10.3 has only at the graph's inputs and outputs",
        ],
    ),
    "float64": (
        model(node("Relu", "x"), kind=TensorProto.DOUBLE),
        [
            f"node 'n' (Relu): input 0 'x' is float64; TensorRT 10.3 takes {FLOATS}, int32, int64",
            f"node 'n' (Relu): output 'y' is float64; TensorRT 10.3 takes {FLOATS}, int32, int64",
        ],
    ),
    "operators outside the table": (
        model(node("DynamicQuantizeLinear", "x", out="a", name="a"), node("FusedMatMul", "x", domain="com.microsoft")),
        [
            "operator DynamicQuantizeLinear (first in node 'a') isn't among those of TensorRT 10.3",
            "operator com.microsoft.FusedMatMul (first in node 'n') isn't among those of TensorRT 10.3",
        ],
    ),
    "opset 23 and its operators": (
        model(node("RMSNormalization", "x", "w"), constants={"w": np.ones(4, np.float32)}, opset=23),
        [
            "opset 23: TensorRT 10.3 reads 9 to 20",
            "operator RMSNormalization (first in node 'n') isn't among those of TensorRT 10.3",
        ],
    ),
    "Attention-23": (
        model(node("Attention", "x", "x", "x"), shape=(1, 2, 4, 4), opset=23),
        [
            "opset 23: TensorRT 10.3 reads 9 to 20",
            "operator Attention (first in node 'n') isn't among those of TensorRT 10.3",
        ],
    ),
    "IR 13": (model(node("Relu", "x"), ir=13), ["IR version 13: TensorRT 10.3 reads up to 9"]),
    "Gelu before opset 20": (
        model(node("Gelu", "x"), opset=19),
        ["node 'n' (Gelu): opset 19 has no such operator"],
    ),
    "dynamic dimension": (
        model(node("Relu", "x"), shape=("N", 4)),
        ["input 'x': dimension 0 ('N') is dynamic; pin it"],
    ),
    "axes that aren't constant": (
        model(
            node("ReduceMean", "x", "axes", out="m", name="mean"),
            node("Identity", "a", out="axes", name="a"),
            node("Add", "x", "m"),
            constants={"a": np.int64([1])},
        ),
        ["node 'mean' (ReduceMean): input 1 'axes' has to be a constant"],
    ),
    "Pad with axes": (
        model(
            node("Pad", "x", "p", "", "a"),
            constants={"p": np.int64([0, 0]), "a": np.int64([1])},
        ),
        ["node 'n' (Pad): the input 'axes' came with TensorRT 10.4"],
    ),
    "a second output of LayerNormalization": (
        model(
            helper.make_node("LayerNormalization", ["x", "w"], ["y", "mean"], name="n"),
            constants={"w": np.ones(4, np.float32)},
        ),
        ["node 'n' (LayerNormalization): TensorRT 10.3 writes its first output only"],
    ),
    "cubic Resize": (
        model(node("Resize", "x", "", "s", mode="cubic"), constants={"s": np.float32([1, 1])}),
        ["node 'n' (Resize): TensorRT resizes by nearest or linear, without antialias"],
    ),
    "a shape that contradicts itself": (
        model(node("MatMul", "x", "w"), constants={"w": np.ones((5, 4), np.float32)}),
        ["it is inconsistent: "],
    ),
    "corrupt bytes": (b"\x08\x09\x12" + bytes(range(200)), ["it is not an ONNX model: "]),
    "half a file": (to_bytes(model(node("Relu", "x")))[:-7], ["it is not an ONNX model: "]),
    "nothing": (b"", ["it holds no ONNX graph"]),
}


def test_the_documentation_has_these_texts() -> None:
    page = (ROOT / "docs/targets.md").read_text()
    table = page[page.index("| graph | text |") :].split("\n\n")[0]
    documented = re.findall(r"\| `([^`]+)`[^|]*\|$", table, re.MULTILINE)
    said = {text for _, texts in REFUSED.values() for text in texts}
    said.add("float8e4m3fn needs compute capability 8.9; this target has 8.7")
    assert len(documented) == 10 and [text for text in documented if text not in said] == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_text(name: str) -> None:
    graph, expected = REFUSED[name]
    found = check(graph)
    if expected[0].endswith(": "):  # what follows is another library's text
        assert len(found) == 1 and found[0].startswith(expected[0])
    else:
        assert found == expected


def test_types_that_the_gpu_hasnt() -> None:
    eight = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))
    graph = qdq(eight)
    assert check(graph) == ["float8e4m3fn needs compute capability 8.9; this target has 8.7"]
    assert check(graph, "jetson-thor") == check(graph, "tensorrt") == []


def test_a_target_older_than_the_table() -> None:
    found = check(model(node("Relu", "x")), runtime_min="8.6")
    assert found == ["runtime_min 8.6: vitedge knows TensorRT from 10.3 on"]


#: Graphs by the oldest TensorRT that takes them, and what older ones say.
SINCE = {
    "RMSNormalization": (
        "10.15",
        model(node("RMSNormalization", "x", "w"), constants={"w": np.ones(4, np.float32)}, opset=23, ir=11),
        [
            "opset 23: TensorRT 10.3 reads 9 to 20",
            "IR version 11: TensorRT 10.3 reads up to 9",
            "operator RMSNormalization (first in node 'n') isn't among those of TensorRT 10.3",
        ],
    ),
    "Attention": (
        "10.15",
        model(node("Attention", "x", "x", "x"), shape=(1, 2, 4, 4), opset=23, ir=10),
        [
            "opset 23: TensorRT 10.3 reads 9 to 20",
            "IR version 10: TensorRT 10.3 reads up to 9",
            "operator Attention (first in node 'n') isn't among those of TensorRT 10.3",
        ],
    ),
    "Pad with axes": (
        "10.15",
        REFUSED["Pad with axes"][0],
        ["node 'n' (Pad): the input 'axes' came with TensorRT 10.4"],
    ),
    "opset 25": (
        "11",
        model(node("Relu", "x"), opset=25, ir=13),
        ["opset 25: TensorRT 10.15 reads 9 to 24", "IR version 13: TensorRT 10.15 reads up to 12"],
    ),
}


@pytest.mark.parametrize("name", SINCE)
def test_each_graph_is_held_against_the_oldest_version_of_its_target(name: str) -> None:
    since, graph, refused = SINCE[name]
    before = {"10.15": "10.13", "11": "10.16"}[since]
    assert check(graph, runtime_min=before) == refused
    for version in {"10.15": ("10.15", "10.16", "11"), "11": ("11", "11.4")}[since]:
        assert check(graph, runtime_min=version) == []


def test_an_attention_that_the_importer_doesnt_take() -> None:
    graph = model(node("Attention", "x", "x", "x", softcap=2.0), shape=(1, 2, 4, 4), opset=23)
    assert check(graph, runtime_min="10.16") == [
        "node 'n' (Attention): TensorRT takes queries, keys and values with four dimensions, without a cache or a cap"
    ]


@pytest.mark.parametrize("version", ["10.3", "10.13", "10.16", "11"])
@pytest.mark.parametrize("precision", [precision for precision, _ in NEAR])
def test_one_graph_serves_every_version(precision: str, version: str) -> None:
    lowered, _ = lower(precision, tiny())
    assert check(lowered.files[lowered.graph], "jetson-thor", runtime_min=version) == []


def test_tensorrt_rtx_is_held_against_the_oldest_table() -> None:
    graph = to_bytes(model(node("Relu", "x"), ir=13))
    found = runtimes.part("tensorrt_rtx", "preflight").check(graph, load_target("tensorrt-rtx"))
    assert found == ["IR version 13: TensorRT 10.3 reads up to 9"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_mutated_file_never_raises(data: st.DataObject) -> None:
    graph = bytearray(to_bytes(model(node("Gelu", "x", out="g", name="g"), node("Softmax", "g"))))
    for _ in range(data.draw(st.integers(1, 4))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    assert all(isinstance(text, str) and text for text in check(bytes(graph)))


def test_outliers_in_the_stem_are_scaled_away() -> None:
    """Channels that reach 50 times as far would leave the others a fiftieth of the grid."""
    config = CONFIGS["wide conv stem"]
    plain = author_vit(config, random_arrays(config, folded_stem=True), mean=MEAN, std=STD)
    graph, images = CASES["stem"](plain, pictures(config, 4)), pictures(config, 6, seed=9)
    expected = interpret(plain, images)
    assert deviation(interpret(graph, images), expected) < 1e-4
    wish = request(graph, config, "int8", images=pictures(config, 16), by="default")
    assert wish.recipe is not None
    unscaled = replace(wish.recipe, improve=replace(wish.recipe.improve, input_migration=False))

    def lost(asked: Request) -> float:
        lowered = runtimes.part("tensorrt", "lowering").lower(asked)
        assert lowered.interpretable is not None and unfused(lowered.interpretable) == []
        return deviation(interpret(lowered.interpretable, images), expected)

    assert lost(wish) < 0.1
    assert lost(dataclasses.replace(wish, recipe=unscaled)) > 2 * lost(wish)
