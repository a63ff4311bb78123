"""Heads of one size for TensorRT: zeros that change nothing, in float, in INT8 and in FP8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from tests.runtimes.typed_vits import deviation, interpret
from vitedge.formats.architecture import BlockWidths, Rope, ViTConfig
from vitedge.formats.recipe import Improve, load_recipe
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import array, initializers
from vitedge.quantization.fp8 import quantize_fp8
from vitedge.quantization.improve import improve
from vitedge.quantization.observe import observe
from vitedge.quantization.prepare import with_own_constants
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import Scheme, quantize_layers
from vitedge.runtimes._nvidia.heads import equal_heads, widened
from vitedge.runtimes._nvidia.lowering import inner_layers
from vitedge.runtimes.attention import attentions

NARROW = (
    BlockWidths(heads=3, query_key=6, value=13, mlp_hidden=24),
    BlockWidths(heads=2, query_key=24, value=5, mlp_hidden=0),
    BlockWidths(heads=1, query_key=8, value=8, mlp_hidden=12),
)
SIZES = {"blocks.0.attn.qkv": 16, "blocks.1.attn.qkv": 24, "blocks.2.attn.qkv": 8}
CONFIG = tiny(depth=3, blocks=NARROW)


def graph_of(config: ViTConfig) -> onnx.ModelProto:
    return author_vit(config, random_arrays(config), mean=MEAN, std=STD)


def quantized(graph: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    recipe, names = load_recipe("default"), [name for name in inner_layers(graph) if name.startswith("blocks.")]
    statistics = observe(graph, random_images(CONFIG, 8), recipe.observe, key="k")
    if precision == "fp8":
        return quantize_fp8(graph, statistics, recipe, names)
    if precision == "int8":
        return insert_qdq(*quantize_layers(graph, statistics, recipe, Scheme("int8", symmetric=True), names))
    wanted = Improve(layernorm_migration=True, value_migration=True, input_migration=True)
    return improve(with_own_constants(graph), statistics, wanted, Scheme("int8", symmetric=True), names)[0]


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp8", "improved"])
@pytest.mark.parametrize("biased", [True, False])
def test_zeros_change_nothing(precision: str, biased: bool) -> None:
    config = tiny(depth=3, blocks=NARROW, qkv_bias=biased)
    graph = graph_of(config)
    graph = graph if precision == "fp32" else quantized(graph, precision)
    same = equal_heads(graph)
    onnx.checker.check_model(same, full_check=True)
    images = random_images(config, 3)
    assert deviation(interpret(same, images), interpret(graph, images)) <= 1e-6
    assert {each.qkv: (each.query_key, each.value) for each in attentions(same)} == {
        name: (size, size) for name, size in SIZES.items()
    }


def test_shifts_and_scales_of_each_channel_are_widened() -> None:
    """An operator that an improvement put behind the attention, with a constant of its own for each channel."""
    graph = graph_of(CONFIG)
    projection = next(node for node in graph.graph.node if node.name == "blocks.1.attn.proj")
    random = np.random.default_rng(0)
    for operator, name in (("Sub", "shift"), ("Mul", "scale")):
        values = random.uniform(0.5, 1.5, 10).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}.by"))
        node = onnx.helper.make_node(operator, [projection.input[0], f"{name}.by"], [f"{name}.out"], name)
        graph.graph.node.insert(list(graph.graph.node).index(projection), node)
        projection.input[0] = f"{name}.out"
    same, images = equal_heads(graph), random_images(CONFIG, 3)
    assert deviation(interpret(same, images), interpret(graph, images)) <= 1e-6
    assert array(initializers(same)["shift.by.equal"]).shape == (48,)


def test_what_reads_other_channels_keeps_them() -> None:
    graph = graph_of(CONFIG)
    context = next(node for node in graph.graph.node if node.name == "blocks.1.attn.context.reshape").output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(context, onnx.TensorProto.FLOAT, None))
    sizes = {each.qkv: (each.query_key, each.value) for each in attentions(equal_heads(graph))}
    assert sizes["blocks.1.attn.qkv"] == (24, 5) and sizes["blocks.0.attn.qkv"] == (16, 16)


@pytest.mark.parametrize(
    "config", [tiny(), tiny(qk_norm=True), tiny(rope=Rope(kind="mixed"), blocks=(NARROW[0], NARROW[2]))]
)
def test_equal_heads_and_those_behind_a_norm_or_a_rotation_stay(config: ViTConfig) -> None:
    graph = graph_of(config)
    assert equal_heads(graph) == graph and widened(graph) == {}


def test_the_reason_names_both_widths() -> None:
    reasons = widened(graph_of(CONFIG))
    assert set(reasons) == {f"blocks.{block}.attn.{product}" for block in (0, 1) for product in ("scores", "context")}
    assert reasons["blocks.0.attn.scores"] == (
        "heads of 6 and 13 channels get zero channels up to 16, as TensorRT fuses heads of one size"
    )
