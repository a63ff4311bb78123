"""Exports of two exporters become the canonical form and keep their logits. `exports/make.py` made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.core.deviation import deviation
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError
from vitedge.formats.architecture import BlockWidths
from vitedge.graph import canonical, interface, surgery
from vitedge.graph.author import author_vit
from vitedge.graph.canonical import TOLERANCE, Report

EXPORTS = Path(__file__).parent / "exports"
LOGITS = np.load(EXPORTS / "logits.npz")
CONTRACT = Preprocessing(size=(32, 48), mean=MEAN, std=STD)
IMAGES = random_images(tiny(), 3)
OTHERS = {"windows-23": 5, "rows-18": 4, "folded-20": 9}  # layers that can be quantized
HYBRIDS = sorted(name for name in LOGITS.files if "hybrid" in name)
VITS = sorted(set(LOGITS.files) - {*HYBRIDS, *OTHERS})


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    piece = surgery.batch_size(model) or len(images)
    parts = [images[i : i + piece] for i in range(0, len(images), piece)]
    return np.concatenate([session.run(["logits"], {"image": part})[0] for part in parts])


def checker(expected: NDArray[np.float32]) -> Callable[[onnx.ModelProto], float]:
    def check(model: onnx.ModelProto) -> float:
        try:
            return deviation(run(model, IMAGES), expected)
        except Exception:
            return float("inf")

    return check


def convert(
    raw: onnx.ModelProto, expected: NDArray[np.float32], contract: Preprocessing = CONTRACT
) -> tuple[onnx.ModelProto, Report]:
    model, report = canonical.prepare(raw, "test")
    source = interface.describe(model, contract, "test")
    model = interface.with_image_input(model, source, contract, expected.shape[1])
    return canonical.canonicalise(model, report, contract, checker(expected))


@pytest.mark.parametrize("name", VITS)
def test_a_plain_vit_is_authored_anew(name: str) -> None:
    model, report = convert(surgery.load(EXPORTS / f"{name}.onnx"), LOGITS[name])
    assert report.deviation <= TOLERANCE and checker(LOGITS[name])(model) <= TOLERANCE
    assert report.architecture is not None and report.left_alone == {} and report.rejected == {}
    assert surgery.batch_size(model) is None and model.ir_version == 9
    names = {node.name for node in model.graph.node}
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc2", "head"} <= names


@pytest.mark.parametrize("changes", [{}, {"class_token": False, "pool": "avg", "final_norm": "fc_norm"}], ids=str)
def test_an_authored_graph_of_other_widths_is_authored_anew(changes: dict[str, object]) -> None:
    """As it lies in a model folder, with the picture's normalisation inside."""
    blocks = (
        BlockWidths(heads=2, query_key=7, value=5, mlp_hidden=11, tokens=17),
        BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=6, tokens=10),
        BlockWidths(heads=4, query_key=2, value=9, mlp_hidden=0),
    )
    config = tiny(depth=3, blocks=blocks, register_tokens=2, **changes)
    model = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    whole = Preprocessing(size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    again, report = convert(model, run(model, IMAGES), whole)
    assert report.architecture is not None and report.architecture.blocks == blocks
    assert report.deviation <= 1e-5 and report.left_alone == {} and report.rejected == {}
    assert [node.name for node in again.graph.node if node.name.startswith("blocks")] == [
        node.name for node in model.graph.node if node.name.startswith("blocks")
    ]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_passes_through_unharmed(name: str) -> None:
    model, report = convert(surgery.load(EXPORTS / f"{name}.onnx"), LOGITS[name])
    assert report.architecture is None and checker(LOGITS[name])(model) <= TOLERANCE
    assert surgery.batch_size(model) is None
    operators = {node.op_type for node in model.graph.node}
    assert {"LayerNormalization", "Gelu"} <= operators
    assert not operators & {"BatchNormalization", "Gemm", "Erf", "Tanh", "Pow", "ReduceMean"} - {"ReduceMean"}
    assert len(surgery.linear_layers(model)) == 10  # 3 convolutions and 7 linear layers can be quantized
    assert "Sigmoid" in report.left_alone
    assert all(report.left_alone[operator] for operator in report.left_alone)


@pytest.mark.parametrize(("name", "layers"), OTHERS.items())
def test_hybrids_of_the_newer_exporter(name: str, layers: int) -> None:
    model, report = convert(surgery.load(EXPORTS / f"{name}.onnx"), LOGITS[name])
    assert report.architecture is None and report.rejected == {} and report.left_alone
    assert deviation(run(model, IMAGES), LOGITS[name]) <= 1e-5
    assert surgery.batch_size(model) is None and len(surgery.linear_layers(model)) == layers
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "Gemm", "Shape", "Attention"}


def test_axes_may_be_counted_from_the_front() -> None:
    raw = surgery.load(EXPORTS / "separate-13.onnx")
    for node in raw.graph.node:
        for attr in node.attribute:
            if node.op_type == "ReduceMean" and attr.name == "axes":
                attr.ints[:] = [2]
            elif node.op_type == "Softmax" and attr.name == "axis":
                attr.i = 3
    model, report = convert(raw, LOGITS["separate-13"])
    assert report.rewrites["last axes counted from the end"] > 0 and report.rewrites["LayerNorm"] == 5
    assert report.architecture is not None and checker(LOGITS["separate-13"])(model) <= TOLERANCE


def test_half_precision_is_widened() -> None:
    raw = surgery.load(EXPORTS / "separate-13.onnx")
    halved = surgery.copy(raw)
    for tensor in surgery.tensors(halved):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(surgery.array(tensor).astype(np.float16), tensor.name))
    for value in (*halved.graph.input, *halved.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in halved.graph.node:
        for attr in node.attribute:
            if node.op_type == "Cast" and attr.i == TensorProto.FLOAT:
                attr.i = TensorProto.FLOAT16
    prepared, report = canonical.prepare(halved, "test")
    assert report.rewrites["half precision widened"] > 0
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in surgery.tensors(prepared))
    source = interface.describe(prepared, CONTRACT, "test")
    expected = run(interface.with_image_input(prepared, source, CONTRACT, 5), IMAGES)
    model, report = convert(halved, expected)
    assert report.architecture is not None
    assert 0 < deviation(run(model, IMAGES), LOGITS["separate-13"]) < 0.05


def test_a_rewrite_that_changes_the_logits_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> int:
        for node in model.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "Identity"
                del node.attribute[:]
                return 1
        return 0

    rewrites = (*canonical._SIMPLIFICATIONS, ("wrong", wrong))
    monkeypatch.setattr(canonical, "_SIMPLIFICATIONS", rewrites)
    model, report = convert(surgery.load(EXPORTS / "separate-20.onnx"), LOGITS["separate-20"])
    assert report.rejected["wrong"] > TOLERANCE and "wrong" not in report.rewrites
    assert report.architecture is not None and checker(LOGITS["separate-20"])(model) <= TOLERANCE


def test_our_own_graph_comes_back_the_same() -> None:
    config = tiny(register_tokens=1, layer_scale=True)
    first = author_vit(config, random_arrays(config), mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    contract = Preprocessing(size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    model, report = convert(first, run(first, IMAGES), contract)
    assert report.architecture is not None and report.architecture.register_tokens == 1
    assert [node.name for node in model.graph.node] == [node.name for node in first.graph.node]


def classifier(layout: str, kind: int, *, size: tuple[int, int] = (32, 48), nodes: str = "") -> onnx.ModelProto:
    """Average pooling and one Gemm, input of any layout and type."""
    shape = [1, 3, *size] if layout == "nchw" else [1, *size, 3]
    axes = [2, 3] if layout == "nchw" else [1, 2]
    weight = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    body = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Gemm", ["mean", "w"], ["scores" if not nodes else "y"]),
    ]
    if nodes:
        body.append(helper.make_node(nodes, ["y"], ["scores"]))
    graph = helper.make_graph(
        body,
        "classifier",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_every_input_becomes_ours(layout: str, order: str, kind: int) -> None:
    plain = kind == TensorProto.UINT8
    normalisation = {"mean": (0, 0, 0), "std": (1, 1, 1), "rescale": 1.0} if plain else {"mean": MEAN, "std": STD}
    contract = Preprocessing(size=(32, 48), channel_order=order, **normalisation)
    raw = classifier(layout, kind)
    model, _ = canonical.prepare(raw, "test")
    model = interface.with_image_input(model, interface.describe(model, contract, "test"), contract, 4)
    ordered = IMAGES[..., ::-1] if order == "bgr" else IMAGES
    values = (ordered * contract.rescale - np.asarray(contract.mean)) / np.asarray(contract.std)
    weight = surgery.array(raw.graph.initializer[0])
    expected = values.mean(axis=(1, 2)) @ weight
    assert deviation(run(model, IMAGES), expected) <= 1e-5
    model, _ = canonical.canonicalise(model, Report(), contract, checker(expected.astype(np.float32)))
    assert surgery.batch_size(model) is None
    assert {"Gemm", "ReduceMean"} & {node.op_type for node in model.graph.node} == {"ReduceMean"}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            classifier("nchw", TensorProto.FLOAT, size=(32, 32)),
            r"expected .*\[N, 3, 32, 48\].*received float \[1, 3, 32, 32\]",
        ),
        (classifier("nchw", TensorProto.INT32), r"received int32"),
    ],
)
def test_another_input_is_refused(raw: onnx.ModelProto, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        interface.describe(raw, CONTRACT, "test")


def test_operators_of_a_newer_opset_are_listed() -> None:
    model = classifier("nchw", TensorProto.FLOAT)
    model.graph.node[1].CopyFrom(helper.make_node("GlobalAveragePool", ["x"], ["pooled"]))
    model.graph.node.insert(2, helper.make_node("Flatten", ["pooled"], ["flat"]))
    model.graph.node.insert(3, helper.make_node("RMSNormalization", ["flat", "scale"], ["mean"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "scale"))
    model.opset_import[0].version, model.ir_version = 23, 11
    with pytest.raises(ModelError, match="opset 23 operators that opset 20 doesn't have: RMSNormalization"):
        canonical.prepare(model, "test")


def test_nodes_without_names_get_one_each() -> None:
    model, _ = canonical.prepare(classifier("nchw", TensorProto.FLOAT), "test")
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
