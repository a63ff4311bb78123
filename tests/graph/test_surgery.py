"""Small tools on graphs, and external data that must not lead out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import MEAN, STD, configs, random_arrays, tiny
from vitedge.errors import ModelError, UsageError
from vitedge.formats.architecture import ViTConfig
from vitedge.graph import surgery
from vitedge.graph.author import author_vit


@settings(max_examples=25, deadline=None)
@given(config=configs())
def test_macs_of_the_graph_are_those_of_the_configuration(config: ViTConfig) -> None:
    model = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    assert sum(surgery.macs(model).values()) == config.macs()
    assert surgery.macs(surgery.pin_batch(model, 3))["head"] == 3 * surgery.macs(model)["head"]


def test_linear_layers_of_our_graph() -> None:
    model = author_vit(tiny(depth=1), random_arrays(tiny(depth=1)), mean=MEAN, std=STD)
    layers = surgery.linear_layers(model)
    assert [(layer.name, layer.kind, layer.channel_axis) for layer in layers] == [
        ("patch_embed.proj", "conv", 0),
        ("blocks.0.attn.qkv", "linear", 1),
        ("blocks.0.attn.proj", "linear", 1),
        ("blocks.0.mlp.fc1", "linear", 1),
        ("blocks.0.mlp.fc2", "linear", 1),
        ("head", "linear", 1),
    ]
    qkv = layers[1]
    assert (qkv.input, qkv.output) == ("blocks.0.norm1.out", "blocks.0.attn.qkv.bias.out")
    assert (qkv.weight, qkv.bias) == ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias")
    assert layers[-1].output == "logits"


def other_spellings() -> onnx.ModelProto:
    """Gemm with transB, MatMul with its bias first, MatMul of two activations, MatMul whose product is read twice."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["a"], name="gemm", transB=1),
        helper.make_node("MatMul", ["a", "w2"], ["c"], name="product"),
        helper.make_node("Add", ["b", "c"], ["d"], name="bias"),
        helper.make_node("MatMul", ["d", "w2"], ["e"], name="twice"),
        helper.make_node("Add", ["e", "b"], ["f"], name="one"),
        helper.make_node("Add", ["e", "f"], ["g"], name="two"),
        helper.make_node("Transpose", ["g"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["g", "t"], ["y"], name="scores"),
    ]
    square = np.eye(4, dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "spellings",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "N"])],
        [numpy_helper.from_array(value, name) for name, value in (("w1", square), ("w2", square), ("b", square[0]))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_linear_layers_of_any_graph() -> None:
    gemm, product, twice = surgery.linear_layers(other_spellings())
    assert (gemm.name, gemm.channel_axis, gemm.bias, gemm.bias_node) == ("gemm", 0, "b", None)
    assert (product.output, product.bias, product.bias_node is not None) == ("d", "b", True)
    assert (twice.output, twice.bias, twice.bias_node) == ("e", None, None)


def test_the_batch_is_pinned_once() -> None:
    model = author_vit(tiny(), random_arrays(tiny()), mean=MEAN, std=STD)
    pinned = surgery.pin_batch(model, 4)
    assert (surgery.batch_size(model), surgery.batch_size(pinned)) == (None, 4)
    assert pinned.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert surgery.shapes(pinned)["blocks.1.attn.scores.out"] == (4, 3, 25, 25)
    with pytest.raises(ModelError, match="made for batch 4"):
        surgery.pin_batch(pinned, 2)


def test_metadata_is_merged_and_the_argument_stays() -> None:
    model = surgery.set_metadata(other_spellings(), {"a": "1", "b": "2"})
    changed = surgery.set_metadata(model, {"b": "3"})
    assert surgery.get_metadata(model) == {"a": "1", "b": "2"}
    assert surgery.get_metadata(changed) == {"a": "1", "b": "3"}


def external(folder: Path, **entries: str) -> Path:
    """A model with one external tensor, its data file beside it."""
    model = other_spellings()
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "16", "length": "64", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_is_put_into_the_model(tmp_path: Path) -> None:
    model = surgery.load(external(tmp_path))
    np.testing.assert_array_equal(surgery.array(model.graph.initializer[0]), np.eye(4))
    (tmp_path / "one.onnx").write_bytes(surgery.to_bytes(model))
    (tmp_path / "weights.bin").unlink()
    onnx.checker.check_model(onnx.load(tmp_path / "one.onnx"))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "../weights.bin"}, "outside the folder"),
        ({"location": "/etc/hostname"}, "outside the folder"),
        ({"location": ""}, "outside the folder"),
        ({"location": "missing.bin"}, "can't be opened"),
        ({"location": "a\0b"}, "can't be opened|outside"),
        ({"location": "."}, "outside the folder|not a plain file"),
        ({"offset": "60"}, "bytes 60 to 124, and that file has 80"),
        ({"offset": "-1"}, "bytes -1"),
        ({"length": "99999999999999"}, "that file has 80"),
        ({"offset": "zero"}, "no number"),
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    with pytest.raises(ModelError, match=text) as refusal:
        surgery.load(external(tmp_path, **entries))
    assert refusal.value.exit_code == 3 and "'w1'" in str(refusal.value)


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder", "pipe"])
def test_external_data_behind_a_link_is_refused(tmp_path: Path, kind: str) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    path = external(inside)
    data = inside / "weights.bin"
    data.rename(outside / "weights.bin")
    if kind == "symbolic":
        data.symlink_to(outside / "weights.bin")
    elif kind == "hard":
        data.hardlink_to(outside / "weights.bin")
    elif kind == "pipe":
        os.mkfifo(data)
    else:
        (inside / "sub").symlink_to(outside)
        path = external(inside, location="sub/weights.bin")
    with pytest.raises(ModelError, match=r"is a link|not a plain file"):
        surgery.load(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        surgery.load(tmp_path / "none.onnx")
    for data in (b"", b"\x08\x07", b"hello", bytes(range(256))):
        with pytest.raises(ModelError, match=r"no ONNX graph|not an ONNX model"):
            surgery.parse(data)
