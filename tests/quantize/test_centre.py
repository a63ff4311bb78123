"""Streams without a mean: no logit changes, what would tell a mean keeps it, and β moves where it costs nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import MEAN, STD, configs, random_arrays, random_images, tiny
from tests.quantize.test_improve import SCHEME, observed_of
from vitedge.architecture import ViTConfig
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import copy, to_bytes
from vitedge.quantize.centre import centred, unshifted
from vitedge.quantize.improve import migrate_layernorms
from vitedge.quantize.observe import observe
from vitedge.quantize.prepare import with_own_constants
from vitedge.recipe import Observe
from vitedge.runtimes.onnxruntime.norms import root_mean_squares

ort = pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed (vitedge[host])")

TOKENS, WIDTH = 5, 6


def written(config: ViTConfig) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def run(model: onnx.ModelProto, value: np.ndarray, outputs: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The outputs, or these tensors; nothing is fused."""
    model = copy(model)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    found = session.run(list(outputs) or None, {session.get_inputs()[0].name: value})
    return [np.asarray(values) for values in found]


def norms(model: onnx.ModelProto) -> dict[str, str]:
    """What each LayerNormalization reads."""
    return {node.name: node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}


@settings(deadline=None, max_examples=40)
@given(config=configs())
def test_no_logit_changes_and_every_stream_is_centred(config: ViTConfig) -> None:
    graph, images = written(config), random_images(config, 2)
    found, names = centred(graph)
    onnx.checker.check_model(found)
    wanted = {name for name in norms(graph) if not name.endswith(("q_norm", "k_norm"))}  # heads are no stream
    (before,), (after,) = run(graph, images), run(found, images)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert names <= wanted
    assert names == ({"norm_pre"} if config.pre_norm else wanted), "what a LayerNormalization writes has a mean"
    read = tuple({norms(found)[name] for name in names})
    for values in run(found, images, read) if read else []:
        assert np.abs(values.mean(axis=-1)).max() <= 1e-5 * np.abs(values).max()
    again, same = centred(found)
    assert same == names and np.allclose(run(again, images)[0], after, atol=1e-5)


class Stream:
    """x [1, tokens, width] through a linear; ``write`` adds what else stands in the stream, and returns its tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.outputs = ["y"]
        self.random = np.random.default_rng(7)
        self.tensor = self.linear("first", "x", WIDTH, WIDTH)

    def node(self, operator: str, inputs: list[str], name: str, **extra: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}.out"], name, **extra))
        return f"{name}.out"

    def constant(self, name: str, values: object) -> str:
        self.constants[name] = np.asarray(values)
        return name

    def floats(self, name: str, *shape: int) -> str:
        return self.constant(name, self.random.normal(1, 1, shape).astype(np.float32))

    def linear(self, name: str, x: str, inner: int, outer: int) -> str:
        product = self.node("MatMul", [x, self.floats(f"{name}.weight", inner, outer)], name)
        return self.node("Add", [product, self.floats(f"{name}.bias", outer)], f"{name}.add")

    def finish(self) -> onnx.ModelProto:
        """A LayerNormalization and a linear behind the stream."""
        width = WIDTH
        gamma, beta = self.floats("norm.weight", width), self.floats("norm.bias", width)
        normal = self.node("LayerNormalization", [self.tensor, gamma, beta], "norm", axis=-1)
        self.nodes.append(helper.make_node("Identity", [self.linear("last", normal, width, 3)], ["y"], "end"))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "stream", [x], outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def joined(stream: Stream, kind: str) -> None:
    """Let something stand in the stream."""
    x = stream.tensor
    if kind == "position":
        stream.tensor = stream.node("Add", [x, stream.floats("position", 1, TOKENS, WIDTH)], "add")
    elif kind == "number for all":
        stream.tensor = stream.node("Add", [stream.constant("number", np.float32(3)), x], "add")
    elif kind == "token":
        token = stream.node("Expand", [stream.floats("token", 1, 1, WIDTH), stream.constant("s", [1, 1, 1])], "expand")
        stream.tensor = stream.node("Concat", [token, x], "concat", axis=1)
    elif kind == "padding":
        stream.tensor = stream.node("Pad", [x, stream.constant("pads", [0, 2, 0, 0, 0, 0])], "pad")
    elif kind == "rows":
        bounds = [stream.constant(name, [value]) for name, value in (("from", 1), ("to", 3), ("axis", 1))]
        stream.tensor = stream.node("Slice", [x, *bounds], "slice")
    elif kind == "one token":
        stream.tensor = stream.node("Gather", [x, stream.constant("at", 2)], "gather", axis=1)
    elif kind == "mean of tokens":
        stream.tensor = stream.node("ReduceMean", [x, stream.constant("axes", [1])], "mean", keepdims=0)
    elif kind == "turned":
        turned = stream.node("Transpose", [x], "turn", perm=[0, 2, 1])
        square = stream.node("Reshape", [turned, stream.constant("shape", [1, WIDTH, TOKENS, 1])], "reshape")
        stream.tensor = stream.node("Transpose", [square], "back", perm=[0, 2, 3, 1])
    elif kind == "residual":
        other = stream.linear("other", "x", WIDTH, WIDTH)
        stream.tensor = stream.node("Add", [x, other], "add")
    elif kind == "scaled":
        stream.tensor = stream.node("Mul", [x, stream.floats("scale", WIDTH)], "mul")
    elif kind == "activation":
        stream.tensor = stream.node("Relu", [x], "relu")
    elif kind == "picture":
        stream.tensor = stream.node("Add", [x, "x"], "add")
    elif kind == "channels joined":
        half = stream.linear("half", "x", WIDTH, WIDTH // 2)
        rest = stream.linear("rest", "x", WIDTH, WIDTH // 2)
        stream.tensor = stream.node("Concat", [half, rest], "concat", axis=2)
    elif kind == "one for all channels":
        stream.tensor = stream.node("Add", [x, stream.linear("narrow", "x", WIDTH, 1)], "add")
    elif kind == "padded channels":
        wide = stream.linear("wide", "x", WIDTH, WIDTH - 1)
        stream.tensor = stream.node("Pad", [wide, stream.constant("pads", [0, 0, 1, 0, 0, 0])], "pad")
    elif kind == "padding of another number":
        pads, value = stream.constant("pads", [0, 2, 0, 0, 0, 0]), stream.constant("value", np.float32(5))
        stream.tensor = stream.node("Pad", [x, pads, value], "pad")
    elif kind == "output":
        stream.outputs.append(x)
    elif kind == "read elsewhere":
        stream.outputs.append(stream.node("Relu", [x], "relu"))
    elif kind == "read as weights":
        stream.outputs.append(stream.node("MatMul", ["x", stream.node("Transpose", [x], "t", perm=[0, 2, 1])], "m"))
    elif kind == "shared constant":
        stream.tensor = stream.node("Add", [x, stream.floats("shared", WIDTH)], "add")
        stream.outputs.append(stream.node("Mul", ["x", "shared"], "mul"))
    elif kind == "mean of channels":
        stream.outputs.append(stream.node("ReduceMean", [x, stream.constant("axes", [2])], "mean"))
    else:
        raise NotImplementedError(kind)


TAKEN = ("position", "number for all", "token", "padding", "rows", "one token", "mean of tokens", "turned", "residual")
REFUSED = (
    *("scaled", "activation", "picture", "channels joined", "one for all channels", "padded channels", "output"),
    *("padding of another number", "read elsewhere", "read as weights", "shared constant", "mean of channels"),
)


@pytest.mark.parametrize("kind", TAKEN)
def test_what_passes_a_stream_on(kind: str) -> None:
    stream = Stream()
    joined(stream, kind)
    graph, value = stream.finish(), np.random.default_rng(2).normal(1, 1, (1, TOKENS, WIDTH)).astype(np.float32)
    found, names = centred(graph)
    assert names == {"norm"}
    values = run(found, value, (norms(found)["norm"],))[0]
    assert np.abs(values.mean(axis=-1)).max() <= 1e-6 * np.abs(values).max()
    assert np.abs(run(graph, value, (norms(graph)["norm"],))[0].mean(axis=-1)).max() > 0.1
    np.testing.assert_allclose(run(found, value)[0], run(graph, value)[0], atol=1e-5)
    squares = root_mean_squares(migrated(found), names)
    assert [node.op_type for node in squares.graph.node if node.name == "norm"] == ["SimplifiedLayerNormalization"]


def migrated(model: onnx.ModelProto) -> onnx.ModelProto:
    """With β zero."""
    model = copy(model)
    for tensor in model.graph.initializer:
        if tensor.name == "norm.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(WIDTH, np.float32), tensor.name))
    return model


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_tell_the_mean_keeps_it(kind: str) -> None:
    stream = Stream()
    joined(stream, kind)
    graph = stream.finish()
    found, names = centred(graph)
    assert names == set()
    assert found.SerializeToString() == with_own_constants(graph).SerializeToString()


def test_a_graph_with_branches_stays() -> None:
    stream = Stream()
    body = helper.make_graph(
        [helper.make_node("Identity", [stream.tensor], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    condition = stream.constant("condition", np.array(True))
    stream.outputs.append(stream.node("If", [condition], "if", then_branch=body, else_branch=body))
    assert centred(stream.finish())[1] == set()


def test_beta_moves_unless_rounding_suffers() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((8, 4))
    plain = random.standard_normal((400, 8))
    small, large = np.full(8, 0.01), np.zeros(8)
    large[3] = -40.0  # without it, one channel lies far off
    kept, ones = unshifted(observed_of(plain + small), matrix, SCHEME, small)
    assert np.array_equal(kept, small) and (ones == 1).all()
    kept, _ = unshifted(observed_of(plain), matrix, SCHEME, large)
    assert (kept == 0).all()
    kept, _ = unshifted(observed_of(plain + large), matrix, SCHEME, large)
    assert np.array_equal(kept, large), "and where β is what makes an outlier it moves all the more"


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"class_token": False, "pool": "avg"}])
def test_a_model_loses_its_shifts_and_means(changes: dict[str, object]) -> None:
    """Centred, β moved, and executed without either: the same logits."""
    config = tiny(**changes)
    graph, images = written(config), random_images(config, 4)
    settings = Observe(num_samples=4, seed=0, reservoir_rows=64, histogram_bins=64)
    found, names = centred(graph)
    layers = [f"blocks.{block}.{name}" for block in range(config.depth) for name in ("attn.qkv", "mlp.fc1")]
    moved, _ = migrate_layernorms(
        found, observe(graph, images, settings, key="k"), SCHEME, layers, lambda o, m, s, beta: (beta, np.ones(len(m)))
    )
    squares = root_mean_squares(moved, names)
    kinds = [node.op_type for node in squares.graph.node if node.name in names]
    assert kinds.count("SimplifiedLayerNormalization") == 2 * config.depth
    assert kinds.count("LayerNormalization") == 1, "the last, behind which nothing is rounded"
    (before,), (after,) = run(graph, images), run(squares, images)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert root_mean_squares(moved, ()).graph.node == with_own_constants(moved).graph.node
