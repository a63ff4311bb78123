"""Every integer variant, executed, against its arithmetic in numpy and against standard Q/DQ executed as written."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from benchmarks.outliers import CASES
from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from tests.quantization.references import convolution
from vitedge.formats.architecture import BlockWidths, ConvStem, PatchStem, ViTConfig
from vitedge.formats.recipe import load_recipe
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import attribute, linear_layers, pin_batch, to_bytes
from vitedge.graph.unused_tokens import without_unused_tokens
from vitedge.quantization.observe import observe
from vitedge.quantization.prepare import replaced
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import QuantizedLayer, Scheme, quantize_layers
from vitedge.quantization.views import View
from vitedge.runtimes.attention import attentions
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.onnxruntime.attention import float_attention, quantized_attention, shares_evenly
from vitedge.runtimes.onnxruntime.convolutions import field_indices, integer_convolutions
from vitedge.runtimes.onnxruntime.gelu import LARGEST_ERROR, tanh_gelus
from vitedge.runtimes.onnxruntime.linears import dynamic_linears, gemm_linears, integer_linears, weight_only_linears
from vitedge.runtimes.onnxruntime.lowering import by_own_range, integer_graph, reasons_for_float

STEM = ConvStem(channels=(8, 10), strides=(2, 4))
CONFIGS = {
    "patches": tiny(),
    "patches-without-bias": tiny(qkv_bias=False, class_token=False, pool="avg", final_norm="fc_norm"),
    "stem": tiny(stem=STEM),
    "stem-stride-3": tiny(stem=ConvStem(channels=(8, 9, 10), strides=(1, 3, 2)), image_size=(30, 36)),
    "stem-max-pool": tiny(stem=ConvStem(channels=(8, 9, 10), strides=(1, 2, 2), reduction="max", first_kernel=2)),
    "qk-norm": tiny(qk_norm=True, layer_scale=True),
    "narrow": tiny(
        depth=4,
        blocks=(
            BlockWidths(heads=3, query_key=6, value=10, mlp_hidden=17),
            BlockWidths(heads=2, query_key=5, value=5, mlp_hidden=0),
            BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=9),
            BlockWidths(heads=1, query_key=16, value=3, mlp_hidden=33),
        ),
    ),
    "one-head": tiny(num_heads=1, stem=PatchStem(patch_size=4)),
}


SEEDS = {"patches": 2}  # with 1, a value lies 6e-6 of a step from a rounding boundary


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def quantized(config: ViTConfig, images: np.ndarray) -> tuple[onnx.ModelProto, dict[str, QuantizedLayer]]:
    graph, recipe = author_vit(config, random_arrays(config), mean=MEAN, std=STD), load_recipe("fast")
    return quantize_layers(
        graph,
        observe(graph, images, recipe.observe, key="k"),
        recipe,
        Scheme("uint8", symmetric=False, wide_sums=False),
    )


def attending(config: ViTConfig) -> int:
    """Blocks that have heads."""
    return sum(config.block(index).heads > 0 for index in range(config.depth))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_form_is_the_arithmetic_of_qdq(name: str) -> None:
    """A value on the other side of a rounding boundary would move its picture's logits; these pictures have none."""
    config = CONFIGS[name]
    images = random_images(config, 6, seed=SEEDS.get(name, 1))
    improved, layers = quantized(config, images)
    linears = {name: layer for name, layer in layers.items() if layer.kind == "linear"}
    convolutions = {name: layer for name, layer in layers.items() if layer.kind == "conv"}
    qkv = {name: layer for name, layer in layers.items() if name.endswith("qkv") and not config.qk_norm}
    for what, variant, chosen in (
        ("linears", integer_linears, linears),
        ("convolutions", integer_convolutions, convolutions),
        ("attention, whole heads", quantized_attention, qkv),
        ("attention, shared rows", partial(quantized_attention, threads=64), qkv),
        ("all", integer_graph, layers),
        ("all, shared rows", partial(integer_graph, threads=64), layers),
        ("rows that are read", lambda graph, chosen: integer_graph(without_unused_tokens(graph), chosen), layers),
    ):
        found = variant(improved, chosen)
        expected = run_graph(insert_qdq(improved, chosen), images)
        assert difference(run(found, images), expected) <= 2e-3, what
        assert np.array_equal(run(pin_batch(found, 6), images), run(found, images))


def test_what_the_whole_consists_of() -> None:
    config = CONFIGS["stem"]
    improved, layers = quantized(config, random_images(config, 6))
    operators = [node.op_type for node in integer_graph(improved, layers).graph.node]
    assert operators.count("QAttention") == config.depth
    assert operators.count("MatMulIntegerToFloat") == 3 + 3 * config.depth + 1  # stem, blocks, head
    assert not {"Conv", "MatMul", "Softmax", "Split"} & set(operators)
    # the picture is brought to rows once, and never back; each 3 × 3 convolution pads and gathers; the class token pads
    assert operators.count("Transpose") == 2 and operators.count("Gather") == 2 + 1 and operators.count("Pad") == 2 + 1
    plain = integer_graph(*quantized(CONFIGS["patches"], random_images(CONFIGS["patches"], 6)))
    assert "Cast" not in [node.op_type for node in plain.graph.node]  # patches are cut from the picture's bytes


def test_a_stem_is_in_integers_but_for_its_first_and_its_last_convolution() -> None:
    for name in ("stem-stride-3", "stem-max-pool"):
        config = CONFIGS[name]
        left = reasons_for_float(author_vit(config, random_arrays(config), mean=MEAN, std=STD))
        assert {layer for layer in left if "patch_embed" in layer} == {"patch_embed.stem.0.conv", "patch_embed.proj"}


def test_a_max_pool_is_computed_of_the_rows_that_it_reads() -> None:
    """A MaxPool by 2 leaves out the last of 23×23 and of 11×11 positions; by 3, the last two of 26×26 and of 8×8."""
    for pixels, reduction, read in ((24, 2, [22 * 22, 10 * 10]), (27, 3, [24 * 24, 6 * 6])):
        stem = ConvStem(channels=(8, 9, 10), strides=(1, reduction, reduction), reduction="max", first_kernel=2)
        config = tiny(stem=stem, image_size=(pixels, pixels))
        images = random_images(config, 6)
        improved, layers = quantized(config, images)
        chosen = {name: layer for name, layer in layers.items() if layer.kind == "conv" and ".stem.0." not in name}
        found = integer_convolutions(improved, chosen)
        operators = [node.op_type for node in found.graph.node]
        assert "MaxPool" not in operators and operators.count("Max") == 2
        constants = {tensor.name: tensor for tensor in found.graph.initializer}
        indices = [constants[f"patch_embed.stem.{stage}.conv.indices"].dims[0] for stage in (1, 2)]
        assert indices == [9 * positions for positions in read]
        assert difference(run(found, images), run_graph(insert_qdq(improved, chosen), images)) <= 2e-3


def test_a_max_pool_stays_where_others_read_its_input_or_its_windows_overlap() -> None:
    config = CONFIGS["stem-max-pool"]
    images = random_images(config, 6)
    improved, layers = quantized(config, images)
    chosen = {name: layer for name, layer in layers.items() if layer.kind == "conv" and ".stem.0." not in name}
    pool = next(node for node in improved.graph.node if node.op_type == "MaxPool")
    shared = onnx.ModelProto.FromString(to_bytes(improved))
    shared.graph.output.append(onnx.helper.make_tensor_value_info(pool.input[0], onnx.TensorProto.FLOAT, None))
    padded = onnx.ModelProto.FromString(to_bytes(improved))
    other = next(node for node in padded.graph.node if node.name == pool.name)
    other.attribute.append(onnx.helper.make_attribute("ceil_mode", 1))
    for graph in (shared, padded):
        kept = [node.name for node in integer_convolutions(graph, chosen).graph.node if node.op_type == "MaxPool"]
        assert kept == [pool.name]
    assert (
        difference(run(integer_convolutions(shared, chosen), images), run_graph(insert_qdq(improved, chosen), images))
        <= 2e-3
    )


@pytest.mark.parametrize("name", ["stem-stride-3", "stem-max-pool"])
def test_outliers_in_a_stem_are_scaled_away_among_rows(name: str) -> None:
    """Channels that reach fifty times as far get a Mul in front of a convolution, and nothing else moves."""
    config = CONFIGS[name]
    plain = author_vit(config, random_arrays(config, folded_stem=True), mean=MEAN, std=STD)
    images = random_images(config, 6)
    planted, expected = CASES["stem"](plain, images), run_graph(plain, images)
    assert difference(run_graph(planted, images), expected) < 1e-4
    recipe = load_recipe("default")

    def rounded(scaled: bool) -> tuple[onnx.ModelProto, dict[str, QuantizedLayer]]:
        chosen = structs.replace(recipe, improve=structs.replace(recipe.improve, input_migration=scaled))
        statistics = observe(planted, images, recipe.observe, key="k")
        improved, layers = quantize_layers(
            planted, statistics, chosen, Scheme("uint8", symmetric=False, wide_sums=False)
        )
        return improved, {
            each: layer for each, layer in layers.items() if layer.kind == "conv" and ".stem.0." not in each
        }

    improved, layers = rounded(scaled=True)
    found = integer_convolutions(improved, layers)
    moving = [node.output[0] for node in found.graph.node if node.op_type == "Transpose" and "stem" in node.output[0]]
    assert len(moving) == 1  # the first convolution's picture becomes rows, and stays rows
    exact = run_graph(insert_qdq(improved, layers), images)
    assert difference(run(found, images), exact) <= 2e-3
    assert difference(exact, expected) < difference(run_graph(insert_qdq(*rounded(scaled=False)), images), expected) / 2


@pytest.mark.parametrize("name", ["stem", "stem-stride-3"])
def test_convolutions_take_each_pictures_own_range(name: str) -> None:
    """Alone a picture is rounded by what it holds itself; in a batch, where others would change it, as calibrated."""
    config = CONFIGS[name]
    images = random_images(config, 6, seed=2)
    improved, layers = quantized(config, images)
    assert by_own_range(improved, layers, batch=2) == frozenset()
    dynamic = by_own_range(improved, layers, batch=1)
    assert dynamic == {layer.name for layer in layers.values() if layer.kind == "conv"}
    patches = CONFIGS["patches"]
    assert not by_own_range(*quantized(patches, random_images(patches, 6)), batch=1), "a picture's bytes are exact"
    variant = integer_graph(improved, layers, dynamic=dynamic)
    standard = pin_batch(insert_qdq(improved, layers, dynamic=dynamic), 1)
    dim = images // 8 + 112  # little contrast
    for pictures in (images, dim):
        found = np.concatenate([run(variant, picture[None]) for picture in pictures])
        assert difference(found, run_graph(standard, pictures)) <= 2e-3
    last = max(dynamic)
    scales = [f"{last}.input.scale", layers[last].input]
    for picture in (images[:1], dim[:1]):
        scale, values = outputs(standard, scales, picture)
        assert np.isclose(scale, (values.max() - min(values.min(), 0)) / 255, rtol=1e-6)
    assert scale < 0.5 * layers[last].input_scale


def test_heads_that_threads_cannot_share_evenly_share_rows() -> None:
    """Three heads on two threads: three linears of one quantized input, and MultiHeadAttention."""
    improved, layers = quantized(CONFIGS["patches"], random_images(CONFIGS["patches"], 6))
    for threads, batch, whole in ((1, 1, True), (2, 1, False), (2, 2, True), (3, 1, True)):
        nodes = integer_graph(improved, layers, threads=threads, batch=batch).graph.node
        operators = [node.op_type for node in nodes]
        assert operators.count("QAttention") == (2 if whole else 0)
        assert operators.count("MultiHeadAttention") == (0 if whole else 2)
        names = {node.name for node in nodes}
        assert ("blocks.0.attn.qkv/v" in names) is not whole
        assert ("blocks.0.attn.scores+blocks.0.attn.context" in names) is not whole
        assert not {"MatMul", "Softmax", "Split"} & set(operators)
    assert [shares_evenly(heads, 2) for heads in (1, 2, 3, 4, 5, 11)] == [False, True, False, True, False, True]


def test_gemm_takes_batches_behind_fused_attention() -> None:
    """QGemm's rows become [N, T, C] again; its bias is rounded, so a logit may differ by a step."""
    config = CONFIGS["patches"]
    images = random_images(config, 6)
    improved, layers = quantized(config, images)
    found = run(integer_graph(improved, layers, gemm_linears), images)
    assert difference(found, run_graph(insert_qdq(improved, layers), images)) <= 2e-2


def test_where_one_token_asks_its_query_alone_is_computed() -> None:
    improved, layers = quantized(CONFIGS["patches"], random_images(CONFIGS["patches"], 6))
    nodes = {node.name: node for node in integer_graph(without_unused_tokens(improved), layers).graph.node}
    assert [node.op_type for node in nodes.values()].count("QAttention") == 1, "of the first block"
    cut = nodes["blocks.1.attn.qkv/q.rows"]
    assert cut.op_type == "Slice" and cut.input[0] == "blocks.1.attn.qkv.input.q.out", "of bytes"
    assert nodes["blocks.1.attn.qkv/q"].input[0] == cut.output[0]
    assert nodes["blocks.1.attn.qkv/k"].input[0] == cut.input[0]
    assert "blocks.1.attn.scores+blocks.1.attn.context" in nodes


def test_queries_cut_along_another_axis_are_no_rows() -> None:
    graph = without_unused_tokens(author_vit(CONFIGS["patches"], random_arrays(CONFIGS["patches"]), mean=MEAN, std=STD))
    assert [bool(one.query_slice) for one in attentions(graph)] == [False, True]
    assert [one.qkv for one in attentions(replaced(graph, {"blocks.1.attn.split.q.rows.axis": np.array([0])}))] == [
        "blocks.0.attn.qkv"
    ]


@given(st.floats(-12, 12, width=32, allow_subnormal=False))  # OpenVINO, loaded before, flushes them
def test_gelu_by_tanh_is_as_near_as_it_is_said_to_be(x: float) -> None:
    exact = x * (1 + math.erf(x / math.sqrt(2))) / 2
    approximate = x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    assert abs(exact - approximate) <= LARGEST_ERROR


def test_gelus_are_approximated_where_their_output_is_rounded_coarsely() -> None:
    improved, layers = quantized(CONFIGS["stem"], random_images(CONFIGS["stem"], 6))

    def approximated(layers: dict[str, QuantizedLayer]) -> set[str]:
        nodes = [node for node in tanh_gelus(improved, layers).graph.node if node.op_type == "Gelu"]
        return {node.name for node in nodes if attribute(node, "approximate", "none") == "tanh"}

    everywhere = {"patch_embed.stem.0.act", "patch_embed.stem.1.act", "blocks.0.mlp.act", "blocks.1.mlp.act"}
    assert approximated(layers) == everywhere
    assert approximated({name: layer for name, layer in layers.items() if layer.kind == "linear"}) == {
        "blocks.0.mlp.act",
        "blocks.1.mlp.act",
    }
    fine = {"blocks.0.mlp.fc2": replace(layers["blocks.0.mlp.fc2"], input_scale=16.1 * LARGEST_ERROR)}
    assert approximated(fine) == {"blocks.0.mlp.act"}
    fine = {"blocks.0.mlp.fc2": replace(layers["blocks.0.mlp.fc2"], input_scale=15.9 * LARGEST_ERROR)}
    assert approximated(fine) == set()


def test_a_convolution_that_others_read_too_keeps_its_layout() -> None:
    """The output of a quantized convolution goes to an operator that knows only [N, C, H, W]."""
    config = CONFIGS["stem"]
    images = random_images(config, 6)
    improved, layers = quantized(config, images)
    for node in improved.graph.node:
        if node.name == "patch_embed.stem.0.act":
            node.op_type = "Sigmoid"
            del node.attribute[:]
    chosen = {name: layer for name, layer in layers.items() if layer.kind == "conv"}
    found, expected = (
        run(integer_convolutions(improved, chosen), images),
        run_graph(insert_qdq(improved, chosen), images),
    )
    assert difference(found, expected) <= 2e-3


def test_a_pointwise_convolution_in_float_takes_rows() -> None:
    config = CONFIGS["stem"]
    images = random_images(config, 6)
    improved, layers = quantized(config, images)
    chosen = {name: layer for name, layer in layers.items() if layer.kind == "conv" and name != "patch_embed.proj"}
    found = integer_convolutions(improved, chosen)
    assert next(node.op_type for node in found.graph.node if node.name == "patch_embed.proj") == "MatMul"
    assert difference(run(found, images), run_graph(insert_qdq(improved, chosen), images)) <= 2e-3


@given(
    st.integers(3, 9), st.integers(3, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.tuples(*[st.integers(0, 2)] * 4), st.integers(1, 3),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_gathering_is_convolving(
    height: int, width: int, kernel: int, stride: int, channels: int, pads: tuple[int, ...], side: int
) -> None:
    random = np.random.default_rng(height * width)
    x, weight = (
        random.standard_normal((2, channels, height, width)),
        random.standard_normal((4, channels, kernel, kernel)),
    )
    view = View("x", (kernel, kernel), (stride, stride), pads)
    rows = np.pad(x.reshape(2, channels, -1).transpose(0, 2, 1), ((0, 0), (0, 1), (0, 0)))  # one row of padding more
    fields = rows[:, field_indices(view, height, width, side)].reshape(2, -1, kernel * kernel * channels)
    found = fields @ weight.transpose(2, 3, 1, 0).reshape(-1, 4)
    whole = convolution(x, weight, (stride, stride), pads)
    pooled = [size // side for size in whole.shape[2:]]  # what a MaxPool of that side makes of it
    tiles = whole[:, :, : pooled[0] * side, : pooled[1] * side].reshape(2, 4, pooled[0], side, pooled[1], side)
    assert np.allclose(found.reshape(2, side, side, *pooled, 4), tiles.transpose(0, 3, 5, 2, 4, 1))


def test_values_of_another_width_have_the_operator_that_takes_them() -> None:
    """QAttention has one width for queries, keys and values; any number of heads of any width suits it."""
    improved, layers = quantized(CONFIGS["narrow"], random_images(CONFIGS["narrow"], 6))
    operators = {node.name: node.op_type for node in integer_graph(improved, layers).graph.node}
    fused = {name: operator for name, operator in operators.items() if operator.endswith("Attention")}
    assert fused == {
        "blocks.0.attn.scores+blocks.0.attn.context": "MultiHeadAttention",
        "blocks.1.attn.qkv+blocks.1.attn.scores+blocks.1.attn.context": "QAttention",
        "blocks.3.attn.scores+blocks.3.attn.context": "MultiHeadAttention",
    }
    assert not {"Split", "Softmax", "MatMul"} & set(operators.values())


def test_attention_that_differs_is_left_alone() -> None:
    config = tiny(depth=1)
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    (one,) = attentions(graph)
    assert (one.qkv, one.heads, one.query_key, one.value) == ("blocks.0.attn.qkv", 3, 8, 8)
    assert one.products == ("blocks.0.attn.scores", "blocks.0.attn.context")
    for name, change in {
        "blocks.0.attn.softmax": lambda node: setattr(node.attribute[0], "i", 1),
        "blocks.0.attn.k.transpose": lambda node: node.attribute[0].ints.__setitem__(slice(None), [0, 2, 1, 3]),
        "blocks.0.attn.scores": lambda node: node.input.__setitem__(slice(None), [node.input[1], node.input[0]]),
    }.items():
        other = onnx.ModelProto.FromString(to_bytes(graph))
        change(next(node for node in other.graph.node if node.name == name))  # type: ignore[no-untyped-call]
        assert attentions(other) == [], name


# --- the instruction that saturates ----------------------------------------------------------------------------------


def worst_case(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(found, exact) products of the largest activations and int8 weights [64, 16], through the integer graph."""
    inputs = onnx.helper.make_tensor_value_info("image", 1, [1, 64])
    output = onnx.helper.make_tensor_value_info("y", 1, [1, 16])
    weight = onnx.numpy_helper.from_array(weights.astype(np.float32), "w")
    nodes = [onnx.helper.make_node("MatMul", ["image", "w"], ["p"], "layer")]
    nodes.append(onnx.helper.make_node("Add", ["p", "b"], ["y"], "layer.bias"))
    bias = onnx.numpy_helper.from_array(np.zeros(16, np.float32), "b")
    graph = onnx.helper.make_graph(nodes, "g", [inputs], [output], [weight, bias])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    layer = QuantizedLayer(
        "layer", "linear", "image", 1.0, 0, "uint8", weights, np.ones(16, np.float32), np.zeros(16, np.float32), 1
    )
    found = run(integer_linears(model, {"layer": layer}), np.full((1, 64), 255, np.float32))
    return found[0], 255.0 * weights.sum(axis=0, dtype=np.int64)


def test_neighbours_that_add_up_to_128_never_saturate() -> None:
    first = np.random.default_rng(0).integers(1, 128, (32, 16))
    pairs = np.stack([first, 128 - first], axis=1).reshape(64, 16).astype(np.int8)
    for weights in (np.full((64, 16), 63, np.int8), np.full((64, 16), -64, np.int8), pairs, -pairs):
        found, exact = worst_case(weights)
        assert np.array_equal(found, exact)


@pytest.mark.parametrize("rows", [(0, 1), (1, 2), (2, 3), (0, 2), (0, 4), (3, 4), (62, 63)])
def test_who_is_whose_neighbour(rows: tuple[int, int]) -> None:
    """On AVX2 without VNNI the products of rows 2i and 2i + 1 may be added in saturating 16 bits; elsewhere none are.

    That nothing else saturates is what the limits of our weights rest on; whether those do is the library's matter.
    """
    from vitedge.device.hardware import processor

    cpu = processor()
    isa = set(cpu.isa or ())
    if cpu.architecture != "x86_64" or "avx2" not in isa:
        pytest.skip("this processor isn't x86 with AVX2")
    weights = np.zeros((64, 16), np.int8)
    weights[list(rows)] = 127
    found, exact = worst_case(weights)
    neighbours = rows[0] // 2 == rows[1] // 2
    exactly = bool(isa & {"avx_vnni", "avx512_vnni", "amx_int8"}) or not neighbours
    if exactly:
        assert np.array_equal(found, exact)
    else:
        assert ((found == exact) | (found == 2**15 - 1)).all()


@pytest.mark.parametrize("name", ["patches", "stem", "qk-norm"])
def test_weights_alone_in_integers_are_the_rounded_weights(name: str) -> None:
    config = CONFIGS[name]
    images = random_images(config, 6)
    improved, layers = quantized(config, images)
    linears = {name: layer for name, layer in layers.items() if layer.kind == "linear"}
    found = run(weight_only_linears(improved, linears), images)
    assert difference(found, run(with_rounded_weights(improved, linears), images)) <= 1e-5


@pytest.mark.parametrize("name", ["patches", "stem", "qk-norm"])
def test_dynamic_scales_are_each_inferences_own(name: str) -> None:
    """One linear at a time, against numpy: u8 over the tensor's own range, zero included."""
    config = CONFIGS[name]
    images = random_images(config, 3)
    improved, layers = quantized(config, images)
    name = "blocks.0.mlp.fc1"
    layer = layers[name]
    linear = next(each for each in linear_layers(improved) if each.name == name)
    found = dynamic_linears(improved, {name: layer})
    x, y = outputs(found, [linear.input, linear.output], images)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    weight = layer.weight if layer.channel_axis == 1 else layer.weight.T
    expected = integers.astype(np.float64) @ weight.astype(np.float64) * (scale * layer.weight_scale) + layer.bias
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["patches", "stem", "qk-norm"])
def test_a_gemm_rounds_its_bias_to_a_step_of_the_product(name: str) -> None:
    """One linear at a time, against numpy."""
    config = CONFIGS[name]
    images = random_images(config, 3)
    improved, layers = quantized(config, images)
    for name in ("blocks.0.attn.qkv", "blocks.0.mlp.fc2", "head"):
        layer = layers[name]
        linear = next(each for each in linear_layers(improved) if each.name == name)
        x, y = outputs(gemm_linears(improved, {name: layer}), [linear.input, linear.output], images)
        zero = layer.input_zero_point
        integers = np.clip(np.rint(x / np.float32(layer.input_scale)) + zero, 0, 255) - zero
        weight = layer.weight if layer.channel_axis == 1 else layer.weight.T
        step = layer.input_scale * layer.weight_scale.astype(np.float64)
        expected = integers.astype(np.float64) @ weight.astype(np.float64) * step + layer.bias
        assert (np.abs(y - expected) <= 0.51 * step + 1e-6 * np.abs(expected).max()).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_float_attention_changes_nothing(name: str) -> None:
    config = CONFIGS[name]
    images = random_images(config, 6)
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    found = float_attention(graph)
    operators = [node.op_type for node in found.graph.node]
    assert operators.count("Attention") == (0 if config.qk_norm else attending(config))
    assert difference(run(found, images), run(graph, images)) <= 1e-5


def with_rounded_weights(model: onnx.ModelProto, layers: dict[str, QuantizedLayer]) -> onnx.ModelProto:
    """The float graph whose weights are what the integers stand for."""
    linears = {linear.name: linear for linear in linear_layers(model)}
    values = {}
    for name, layer in layers.items():
        shape = [1, 1]
        shape[layer.channel_axis] = -1
        values[linears[name].weight] = layer.weight * layer.weight_scale.reshape(shape)
        values[linears[name].bias or ""] = layer.bias
    return replaced(model, values)


def outputs(model: onnx.ModelProto, names: list[str], images: np.ndarray) -> list[np.ndarray]:
    """Inner tensors of a graph."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnxruntime.InferenceSession(to_bytes(watched), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(names, {"image": images})]
