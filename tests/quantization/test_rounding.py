"""Rounding against float64 references on small matrices, and whole layers in a graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from tests.quantization.references import brain_surgeon, dequantized, weight_error
from tests.quantization.test_improve import observed_of
from vitedge.errors import ModelError
from vitedge.formats.architecture import ConvStem
from vitedge.formats.recipe import load_recipe
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import array, initializers, linear_layers
from vitedge.quantization.gptq import DAMPING, gptq
from vitedge.quantization.integers import PAIR, Codes, affine
from vitedge.quantization.observe import observe
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import (
    Scheme,
    activation_grid,
    mean_output_error,
    pooled,
    quantize_layers,
    weight_scales,
)
from vitedge.runtimes.interpreter import run_graph

U8 = Scheme("uint8", symmetric=False, wide_sums=False)
S8 = Scheme("int8", symmetric=True)
SEVEN, EIGHT = Codes(63), Codes(127)
CONFIG = tiny(stem=ConvStem(channels=(6, 8), strides=(2, 4)), qkv_bias=False)


def output_error(rows: np.ndarray, matrix: np.ndarray, grid: object) -> float:
    scale, zero_point, type_ = grid  # type: ignore[misc]
    low, high = (0, 255) if type_ == "uint8" else (-128, 127)
    delta = rows - dequantized(rows, float(scale), zero_point, low, high)
    return float((((delta - delta.mean(axis=0)) @ matrix) ** 2).sum())


@given(st.integers(0, 10**6), st.sampled_from([U8, S8]))
@settings(deadline=None, max_examples=15)
def test_clipping_is_never_worse_than_the_whole_range(seed: int, scheme: Scheme) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_t(2, (120, 6)).astype(np.float32).astype(np.float64)  # heavy tails
    matrix = random.standard_normal((6, 5))
    seen = observed_of(rows)
    whole = activation_grid(seen, matrix, "minmax", scheme)
    assert whole == affine(rows.min(), rows.max(), scheme)
    clipped = activation_grid(seen, matrix, "mse", scheme, unbiased=True)
    assert output_error(rows, matrix, clipped) <= output_error(rows, matrix, whole) * (1 + 1e-5)
    assert clipped.scale <= whole.scale


def test_a_channel_that_no_weight_reads_does_not_count() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((500, 4)) * np.array([1, 1, 1, 100])
    matrix = random.standard_normal((4, 3))
    matrix[3] = 0
    grid = activation_grid(observed_of(rows), matrix, "mse", U8, unbiased=True)
    whole = activation_grid(observed_of(rows), matrix, "minmax", U8)
    assert grid.scale < whole.scale / 8


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_pooled_histograms_keep_mass_and_mean(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((100, 3)) * np.array([0.1, 1, 10])
    importance = random.uniform(0, 2, 3)
    values, weights = pooled(observed_of(rows), importance)
    assert np.isclose(weights.sum(), 100 * importance.sum())
    bin_width = (rows.max(axis=0) - rows.min(axis=0)).max() / 64
    assert abs((values @ weights) - (rows.sum(axis=0) @ importance)) <= bin_width * weights.sum()


@given(st.integers(0, 10**6), st.sampled_from([SEVEN, EIGHT]))
@settings(deadline=None, max_examples=20)
def test_error_optimal_weight_scales(seed: int, codes: Codes) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_t(2, (16, 5))
    rows = random.standard_normal((60, 16)) @ random.standard_normal((16, 16))
    moments, limit = rows.T @ rows / len(rows), codes.largest
    whole = weight_scales(matrix, None, codes)
    assert np.allclose(whole, np.abs(matrix).max(axis=0) / limit)
    best = weight_scales(matrix, moments.astype(np.float32), codes)
    error = weight_error(matrix, best, limit, moments)
    assert (error <= weight_error(matrix, whole, limit, moments) * (1 + 1e-3)).all()
    assert (best <= whole).all() and (best > 0).all()


@given(st.integers(0, 10**6), st.sampled_from([5, 70]))
@settings(deadline=None, max_examples=8)
def test_gptq_is_the_brain_surgeon(seed: int, inputs: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((inputs, 3))
    rows = random.standard_normal((4 * inputs, inputs)) @ random.standard_normal((inputs, inputs))
    covariance = rows.T @ rows / len(rows)
    scale = weight_scales(matrix, None, SEVEN)
    hessian = covariance + DAMPING * np.diag(covariance).mean() * np.eye(inputs)
    expected = brain_surgeon(matrix, scale.astype(np.float64), 63, hessian)
    found = gptq(matrix, scale, SEVEN, covariance)
    assert found.dtype == np.int8 and np.array_equal(found, expected)


@pytest.mark.parametrize("spread", [1e-4, 0.0])
def test_gptq_of_inputs_that_hardly_vary(spread: float) -> None:
    """Their moments are little more than rounding: eigenvalues and variances below zero."""
    draw = np.random.default_rng(5)
    noise = draw.standard_normal((24, 24)) * 1e-6
    covariance = (noise + noise.T - 2e-6 * np.eye(24) + spread * np.outer(np.ones(24), np.ones(24))).astype(np.float32)
    matrix = draw.standard_normal((24, 3))
    found = gptq(matrix, np.full(3, 0.05, np.float32), EIGHT, covariance)
    assert np.abs(found * 0.05 - np.clip(matrix, -6.35, 6.35)).max() < 0.2


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_gptq_keeps_neighbours_from_saturating(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix, rows = random.standard_t(2, (24, 3)), random.standard_normal((60, 24)) @ random.standard_normal((24, 24))
    covariance, codes = rows.T @ rows / len(rows), Codes.of(U8, channels=12, taps=2)
    for shrink in (0.5, 1.0):
        scale = (shrink * codes.scale(matrix)).astype(np.float32)
        found = gptq(matrix, scale, codes, covariance).astype(int)
        assert np.abs(found).max() <= 127
        assert_no_pair_saturates(found.T.reshape(3, 12, 2))


def assert_no_pair_saturates(levels: np.ndarray) -> None:
    """Of weights [C_out, channels, ...]: neighbours add up to 128, or none has more than 7 bits."""
    if levels.shape[1] % 2:
        assert np.abs(levels).max() <= 63
    else:
        assert np.abs(levels[:, 0::2] + levels[:, 1::2]).max() <= PAIR


def test_gptq_beats_the_nearest_where_inputs_hang_together() -> None:
    random = np.random.default_rng(0)
    matrix, rows = random.standard_normal((40, 8)), random.standard_normal((500, 6)) @ random.standard_normal((6, 40))
    covariance = rows.T @ rows / len(rows)
    scale = weight_scales(matrix, None, SEVEN)

    def error(levels: np.ndarray) -> float:
        delta = matrix - levels * scale.astype(np.float64)
        return float(np.sum(delta * (covariance @ delta)))

    assert error(gptq(matrix, scale, SEVEN, covariance)) < 0.2 * error(SEVEN.round(matrix, scale))
    independent = np.diag(random.uniform(0.5, 2, 40))
    assert np.array_equal(gptq(matrix, scale, SEVEN, independent), SEVEN.round(matrix, scale))
    assert np.array_equal(gptq(matrix, scale, SEVEN, np.zeros((40, 40))), SEVEN.round(matrix, scale))


def test_a_channel_of_zeros_has_a_scale() -> None:
    matrix = np.zeros((4, 2))
    matrix[0, 0] = 1
    scale = weight_scales(matrix, np.eye(4, dtype=np.float32), EIGHT)
    assert np.isfinite(scale).all() and (scale > 0).all()


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_the_corrected_bias_takes_the_mean_error_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.exponential(size=(300, 6)) ** 2
    matrix = random.standard_normal((6, 4))
    seen = observed_of(rows)
    grid = affine(0, rows.max() / 3, U8)  # clips, so it is biased
    scale = weight_scales(matrix, None, SEVEN)
    rounded = np.stack([dequantized(w, float(s), 0, -63, 63) for w, s in zip(matrix.T, scale, strict=True)], axis=1)
    coarse = dequantized(rows, float(grid.scale), grid.zero_point, 0, 255)
    expected = rows.mean(axis=0) @ matrix - coarse.mean(axis=0) @ rounded
    assert np.allclose(mean_output_error(seen, matrix, grid, rounded), expected, atol=1e-4 * np.abs(rows).max())


# --- in a graph ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return author_vit(CONFIG, random_arrays(CONFIG), mean=MEAN, std=STD)


IMAGES = random_images(CONFIG, 24)


@pytest.mark.parametrize("recipe_name", ["fast", "default"])
@pytest.mark.parametrize("scheme", [U8, S8], ids=["u8s8", "s8s8"])
def test_qdq_is_the_numpy_model(graph: onnx.ModelProto, recipe_name: str, scheme: Scheme) -> None:
    """The graph with Q/DQ, executed as written, equals the float graph with weights and inputs replaced one by one."""
    recipe = load_recipe(recipe_name)
    statistics = observe(graph, IMAGES, recipe.observe, key="k")
    improved, layers = quantize_layers(graph, statistics, recipe, scheme)
    assert list(layers) == [linear.name for linear in linear_layers(graph)]
    model = insert_qdq(improved, layers)
    onnx.checker.check_model(model, full_check=True)
    exact, found = run_graph(graph, IMAGES), run_graph(model, IMAGES)
    assert np.abs(found - exact).max() <= 0.15 * np.abs(exact).max()
    for name, layer in layers.items():
        levels = layer.weight.astype(int)
        assert layer.weight.dtype == np.int8 and np.abs(levels).max() <= 127
        if scheme is U8:
            assert_no_pair_saturates(levels if layer.channel_axis == 0 else levels.T)
        assert layer.input_type == scheme.activation and np.float32(layer.input_scale) == layer.input_scale
        assert not scheme.symmetric or layer.input_zero_point == 0
        constants = {tensor.name: array(tensor) for tensor in model.graph.initializer}
        assert np.array_equal(constants[f"{name}.weight.q"], layer.weight)
        assert constants[f"{name}.weight.scale"].dtype == np.float32
    assert linear_layers(graph)[0].weight not in initializers(model)


def test_default_is_closer_than_fast_under_outliers(graph: onnx.ModelProto) -> None:
    arrays = random_arrays(CONFIG)
    for block in range(CONFIG.depth):
        arrays[f"blocks.{block}.norm1.weight"][3] *= 50
        arrays[f"blocks.{block}.attn.qkv.weight"][:, 3] /= 50
        arrays[f"blocks.{block}.norm2.weight"][4] *= 50
        arrays[f"blocks.{block}.mlp.fc1.weight"][:, 4] /= 50
    outliers = author_vit(CONFIG, arrays, mean=MEAN, std=STD)
    exact, errors = run_graph(outliers, IMAGES), {}
    for name in ("fast", "default"):
        recipe = load_recipe(name)
        statistics = observe(outliers, IMAGES, recipe.observe, key="k")
        found = run_graph(insert_qdq(*quantize_layers(outliers, statistics, recipe, U8)), IMAGES)
        errors[name] = np.abs(found - exact).mean()
    assert errors["default"] < errors["fast"] / 2


def test_some_layers(graph: onnx.ModelProto) -> None:
    recipe = load_recipe("fast")
    statistics = observe(graph, IMAGES, recipe.observe, key="k")
    chosen = ["blocks.0.mlp.fc1", "blocks.1.attn.proj"]
    improved, layers = quantize_layers(graph, statistics, recipe, U8, chosen)
    assert list(layers) == chosen
    model = insert_qdq(improved, layers)
    assert [node.name for node in model.graph.node if node.op_type == "QuantizeLinear"] == [
        "blocks.0.mlp.fc1.input.q",
        "blocks.1.attn.proj.input.q",
    ]


def test_layers_that_read_one_tensor_share_its_pair() -> None:
    config = tiny(depth=1, distillation_token=True)
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    for node in graph.graph.node:  # fc1 reads what qkv reads
        if node.name == "blocks.0.mlp.fc1":
            node.input[0] = "blocks.0.norm1.out"
    recipe = load_recipe("default")
    statistics = observe(graph, random_images(config, 8), recipe.observe, key="k")
    improved, layers = quantize_layers(graph, statistics, recipe, U8)
    qkv, fc1 = layers["blocks.0.attn.qkv"], layers["blocks.0.mlp.fc1"]
    assert (qkv.input_scale, qkv.input_zero_point) == (fc1.input_scale, fc1.input_zero_point)
    quantizers = [node.input[0] for node in insert_qdq(improved, layers).graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers.count("blocks.0.norm1.out") == 1


def test_pixels_are_taken_as_they_are() -> None:
    config = tiny()
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    dark = random_images(config, 8) // 2
    recipe = replace(load_recipe("default"), observe=replace(load_recipe("default").observe, num_samples=8))
    _, layers = quantize_layers(graph, observe(graph, dark, recipe.observe, key="k"), recipe, U8)
    assert (layers["patch_embed.proj"].input_scale, layers["patch_embed.proj"].input_zero_point) == (1, 0)


def test_refusals(graph: onnx.ModelProto) -> None:
    recipe = load_recipe("fast")
    statistics = observe(graph, IMAGES, recipe.observe, key="k")
    with pytest.raises(ModelError, match=r"quantize the layer 'no such'[\s\S]*the graph has no such layer"):
        quantize_layers(graph, statistics, recipe, U8, ["no such"])
    with pytest.raises(ModelError, match="never observed"):
        quantize_layers(graph, replace_observed(statistics), recipe, U8)
    improved, layers = quantize_layers(graph, statistics, recipe, U8)
    with pytest.raises(ModelError, match="no linear layer 'head'"):
        insert_qdq(author_without_head(improved), layers)


def replace_observed(statistics: object) -> object:
    from dataclasses import replace as changed

    return changed(statistics, observed={})  # type: ignore[type-var]


def author_without_head(model: onnx.ModelProto) -> onnx.ModelProto:
    new = onnx.ModelProto.FromString(model.SerializeToString())
    for node in new.graph.node:
        if node.name == "head":
            node.name = "tail"
    return new
