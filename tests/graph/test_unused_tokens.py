"""Unused tokens: what goes, what stays, and that no value changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import MEAN, STD, configs, random_arrays, random_images, tiny
from vitedge.formats.architecture import Rope, ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import macs, shapes, to_bytes
from vitedge.graph.unused_tokens import without_unused_tokens

ort = pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed (vitedge[host])")

TOKENS, WIDTH = 5, 6


def written(config: ViTConfig) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def run(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
    """The first output, as written: nothing is fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: value})[0])


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))


def assert_stays(model: onnx.ModelProto) -> None:
    assert without_unused_tokens(model).SerializeToString() == model.SerializeToString()


@settings(deadline=None, max_examples=40)
@given(config=configs())
def test_no_logit_changes(config: ViTConfig) -> None:
    graph, images = written(config), random_images(config, 2)
    before = graph.SerializeToString()
    lean = without_unused_tokens(graph)
    onnx.checker.check_model(lean)
    assert graph.SerializeToString() == before
    assert_same(run(lean, images), run(graph, images))
    assert sum(macs(lean).values()) <= sum(macs(graph).values())
    assert_stays(lean)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"mlp": "swiglu"}, {"register_tokens": 3}])
def test_behind_the_last_attention_only_the_class_token_is_computed(changes: dict[str, object]) -> None:
    config = tiny(**changes)
    lean = without_unused_tokens(written(config))
    known = shapes(lean)
    assert known["blocks.1.attn.k.reshape.out"][1] == known["blocks.0.mlp.fc2.out"][1] == config.tokens
    for tensor in ("attn.q.reshape.out", "attn.proj.out", "add1.out", "mlp.fc1.out", "mlp.fc2.out", "add2.out"):
        assert known[f"blocks.1.{tensor}"][1] == 1, tensor
    slices = [node.name for node in lean.graph.node if node.op_type == "Slice"]
    assert slices == ["blocks.1.attn.split.q.rows", "blocks.0.add2.out.rows"]
    stored = {tensor.name for tensor in lean.graph.initializer}
    assert stored == {name for node in lean.graph.node for name in node.input} & stored, "nothing is left unread"


def test_a_distilled_model_keeps_two_rows() -> None:
    lean = without_unused_tokens(written(tiny(distillation_token=True)))
    assert shapes(lean)["blocks.1.mlp.fc1.out"][1] == 2


@pytest.mark.parametrize("changes", [{"pool": "avg", "final_norm": "fc_norm"}, {"pool": "token_avg"}])
def test_where_every_token_is_read_the_graph_stays(changes: dict[str, object]) -> None:
    assert_stays(written(tiny(**changes)))


def test_positions_turn_the_rows_that_are_left() -> None:
    config = tiny(rope=Rope(kind="axial"), embed_dim=24, num_heads=3)
    graph, images = written(config), random_images(config, 1)
    lean = without_unused_tokens(graph)
    cut = {tensor.name: list(tensor.dims) for tensor in lean.graph.initializer if tensor.name.startswith("rope.")}
    assert cut["rope.cos"][0] == config.tokens and cut["rope.cos.rows"][0] == 1
    assert_same(run(lean, images), run(graph, images))


# --- any graph -------------------------------------------------------------------------------------------------------


class Chain:
    """A float graph [N, 5, 6] -> something, made of steps that keep or mix rows."""

    def __init__(self, seed: int, *kinds: str) -> None:
        self.random, self.nodes, self.weights = np.random.default_rng(seed), [], []
        self.x = "x"
        for kind in kinds:
            self.step(kind)

    def constant(self, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, f"c{len(self.weights)}"))
        return str(self.weights[-1].name)

    def draw(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        outs = [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), outs, name=name, **attributes))
        return outs[0]

    def row(self, index: int | list[int]) -> str:
        return self.node("Gather", self.x, self.constant(np.array(index)), axis=1)

    def step(self, kind: str) -> None:
        x = self.x
        if kind == "bias":
            self.x = self.node("Add", self.draw(WIDTH), x)
        elif kind == "positions":
            self.x = self.node("Mul", x, self.draw(TOKENS, WIDTH))
        elif kind == "per token":
            self.x = self.node("Sub", x, self.draw(1, TOKENS, 1))
        elif kind == "product":
            self.x = self.node("MatMul", x, self.draw(WIDTH, WIDTH))
        elif kind == "norm":
            self.x = self.node("LayerNormalization", x, self.draw(WIDTH), axis=-1)
        elif kind == "norm of all":
            self.x = self.node("LayerNormalization", x, self.draw(TOKENS, WIDTH), axis=1)
        elif kind == "gelu":
            self.x = self.node("Gelu", x)
        elif kind == "softmax":
            self.x = self.node("Softmax", x, axis=-1)
        elif kind == "softmax over rows":
            self.x = self.node("Softmax", x, axis=1)
        elif kind == "residual":
            self.x = self.node("Add", x, self.node("Tanh", x))
        elif kind == "heads":
            heads = self.node("Reshape", x, self.integers(0, 0, 2, 3))
            turned = self.node("Transpose", heads, perm=[0, 2, 1, 3])
            back = self.node("Transpose", self.node("Sigmoid", turned), perm=[0, 2, 1, 3])
            self.x = self.node("Reshape", back, self.integers(0, -1, WIDTH))
        elif kind == "explicit shape":
            self.x = self.node("Reshape", x, self.integers(-1, TOKENS, WIDTH))
        elif kind == "attention":
            keys = self.node("Transpose", x, perm=[0, 2, 1])
            scores = self.node("Softmax", self.node("MatMul", self.node("Relu", x), keys), axis=-1)
            self.x = self.node("MatMul", scores, x)
        elif kind == "halves":
            first = self.node("Split", x, self.integers(2, 4), outputs=2, axis=-1)
            self.x = self.node("Concat", first.replace(".0", ".1"), first, axis=-1)
        elif kind == "reversed":
            first = self.node("Split", x, self.integers(2, 3), outputs=2, axis=1)
            self.x = self.node("Concat", first.replace(".0", ".1"), first, axis=1)
        else:
            raise ValueError(kind)

    def model(self, outputs: Sequence[str] = ()) -> onnx.ModelProto:
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", TOKENS, WIDTH])
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (self.x, *outputs)]
        graph = helper.make_graph(self.nodes, "chain", [source], values, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


KINDS = [
    *("bias", "positions", "per token", "product", "norm", "norm of all", "gelu", "softmax", "softmax over rows"),
    *("residual", "heads", "explicit shape", "attention", "halves", "reversed"),
]
X = np.random.default_rng(7).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
    first=st.integers(0, TOKENS - 1),
    count=st.integers(0, TOKENS),
    seed=st.integers(0, 1000),
)
def test_no_value_changes_whatever_stands_in_front(kinds: list[str], first: int, count: int, seed: int) -> None:
    chain = Chain(seed, *kinds)
    if count == 0:
        chain.x = chain.row(first)
    else:
        bounds = (chain.integers(value) for value in (first, first + count, 1))
        chain.x = chain.node("Slice", chain.x, *bounds)
    model = chain.model()
    assert_same(run(without_unused_tokens(model), X), run(model, X))


@pytest.mark.parametrize("kind", ["product", "bias", "positions", "norm", "heads", "halves", "attention", "residual"])
def test_operators_that_keep_rows_apart_get_fewer(kind: str) -> None:
    chain = Chain(0, "product", kind)
    chain.x = chain.row(2)
    known = shapes(without_unused_tokens(chain.model()))
    product = known["n0.0"][1]
    assert product == (TOKENS if kind == "attention" else 1)
    assert kind != "attention" or known["n5.0"] == (None, 1, WIDTH)


@pytest.mark.parametrize("kind", ["norm of all", "softmax over rows", "explicit shape", "reversed"])
def test_operators_that_mix_rows_get_all_of_them(kind: str) -> None:
    chain = Chain(0, "product", kind)
    chain.x = chain.row(2)
    assert_stays(chain.model())


def test_an_output_is_read_whole() -> None:
    chain = Chain(0, "product")
    tokens = chain.x
    chain.x = chain.row(2)
    assert_stays(chain.model([tokens]))


def test_two_that_read_different_rows_leave_all_of_them() -> None:
    chain = Chain(0, "product")
    parts = [chain.row(index) for index in (0, 3)]
    chain.x = chain.node("Add", *parts)
    assert_stays(chain.model())


def test_what_a_branch_reads_is_read() -> None:
    chain = Chain(0, "product")
    tokens = chain.x
    result = helper.make_tensor_value_info("all", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("ReduceMax", [tokens], ["all"], keepdims=0)], "body", [], [result])
    highest = chain.node("If", chain.constant(np.array(True)), then_branch=body, else_branch=body)
    row = chain.row(2)
    chain.x = chain.node("Sub", row, highest)
    model = chain.model()
    assert_same(run(without_unused_tokens(model), X), run(model, X))


@pytest.mark.parametrize("index", [-1, TOKENS, [0, 1]])
def test_indices_that_are_no_one_row_from_the_front_select_nothing(index: int | list[int]) -> None:
    chain = Chain(0, "product")
    chain.x = chain.row(index)
    assert_stays(chain.model())
