"""Improvements change what is rounded, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.formats.architecture import BlockWidths, ViTConfig
from vitedge.formats.recipe import Improve, Observe
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import array, initializers, linear_layers
from vitedge.quantization.improve import ALPHAS, by_operators, improve, migrate_layernorms, migration
from vitedge.quantization.integers import Scheme, affine
from vitedge.quantization.observe import observe
from vitedge.quantization.prepare import with_own_constants
from vitedge.quantization.rounding import compensated
from vitedge.quantization.statistics import Observed
from vitedge.runtimes.interpreter import run_graph

SETTINGS = Observe(num_samples=16, seed=0, reservoir_rows=128, histogram_bins=64)
SCHEME = Scheme("uint8", symmetric=False, wide_sums=False)
PARTS = ("shift", "scale")


def observed_of(rows: np.ndarray) -> Observed:
    """The observation of float64 rows [n, C], all kept."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    histogram = np.stack([np.histogram(column, 64, (a, b))[0] for column, a, b in zip(rows.T, low, high, strict=True)])
    return Observed(
        count=len(rows),
        rows=rows.astype(np.float32),
        minimum=low.astype(np.float32),
        maximum=high.astype(np.float32),
        mean=rows.mean(axis=0),
        moments=(rows.T @ rows / len(rows)).astype(np.float32),
        histogram=histogram.astype(np.uint32),
        low=low,
        high=high,
    )


@given(st.integers(0, 10**6), st.sampled_from(ALPHAS))
@settings(deadline=None, max_examples=30)
def test_migration_is_exact_in_float64(seed: int, alpha: float | None) -> None:
    """LayerNorm and the linear behind it, before and after: the same to 1e-5 of the largest output."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((40, 12))
    gamma, beta = random.uniform(0.1, 3, 12) * np.where(random.random(12) < 0.2, 50, 1), random.standard_normal(12)
    matrix, bias = random.standard_normal((12, 7)), random.standard_normal(7)
    norm = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    rows = norm * gamma + beta
    shift, scale = migration(observed_of(rows), matrix, alpha)
    moved = norm * (gamma / scale) + (beta - shift) / scale
    before, after = rows @ matrix + bias, moved @ (matrix * scale[:, None]) + bias + shift @ matrix
    assert (scale > 0).all()
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_moved_statistics_are_the_moved_rows_statistics(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((50, 6)) * random.uniform(0.1, 10, 6) + random.standard_normal(6)
    shift, scale = random.standard_normal(6), random.uniform(0.2, 5, 6)
    found, expected = observed_of(rows).moved(shift, scale), observed_of((rows - shift) / scale)
    for name in ("rows", "minimum", "maximum", "mean", "moments", "low", "high"):
        assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3), name
    assert np.array_equal(found.histogram, observed_of(rows).histogram)
    centred = rows - rows.mean(axis=0)
    assert np.allclose(observed_of(rows).covariance(), centred.T @ centred / len(rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"layer_scale": True, "register_tokens": 2}])
def test_logits_stay(changes: dict[str, object]) -> None:
    config = tiny(**changes)
    arrays = random_arrays(config)
    for block in range(config.depth):  # outliers, so that there is something to move
        arrays[f"blocks.{block}.norm1.weight"][3] *= 50
        arrays[f"blocks.{block}.norm2.weight"][5] *= 50
    arrays["norm.weight"][2] *= 50
    graph = author_vit(config, arrays, mean=MEAN, std=STD)
    images = random_images(config, 16)
    names = [linear.name for linear in linear_layers(graph)]
    prepared = with_own_constants(graph)
    statistics = observe(graph, images, SETTINGS, key="k")
    improved, moved = migrate_layernorms(prepared, statistics, SCHEME, names)
    before, after = run_graph(graph, images), run_graph(improved, images)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    again = observe(improved, images, SETTINGS, key="k")
    changed = 0
    for key, seen in again.observed.items():
        told = moved.observed[key]
        spread = np.abs(seen.maximum).max()
        assert np.allclose(told.minimum, seen.minimum, atol=1e-3 * spread)
        assert np.allclose(told.mean, seen.mean, atol=1e-3 * spread)
        changed += not np.allclose(told.mean, statistics.observed[key].mean, atol=1e-3 * spread)
    assert changed == 2 * config.depth + 1  # every LayerNorm: two a block, and the last, which the head alone reads


def test_only_where_nothing_else_reads_the_norm() -> None:
    config = tiny(depth=1)
    arrays = random_arrays(config)
    for norm in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        arrays[f"{norm}.weight"][1] *= 50
    graph = author_vit(config, arrays, mean=MEAN, std=STD)
    statistics = observe(graph, random_images(config, 16), SETTINGS, key="k")
    prepared = with_own_constants(graph)
    improved, moved = migrate_layernorms(prepared, statistics, SCHEME, ["blocks.0.mlp.fc1"])
    before, after = initializers(prepared), initializers(improved)
    for name in ("blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "norm.weight", "head.weight"):
        assert np.array_equal(array(before[name]), array(after[name])), name
    assert not np.array_equal(array(before["blocks.0.norm2.weight"]), array(after["blocks.0.norm2.weight"]))
    assert moved.observed["blocks.0.norm1.out"] is statistics.observed["blocks.0.norm1.out"]


def test_scale_and_bias_move_into_the_linears_where_the_runtime_rounds_in_the_norm() -> None:
    """All of them, unless that loses too much: the weights of an outlier's row are coarse in every column."""
    config = tiny(depth=2)
    arrays = random_arrays(config)
    arrays["blocks.1.norm2.weight"][5] *= 50
    arrays["blocks.1.norm1.weight"][3] *= -1  # its range would turn around
    graph, images = author_vit(config, arrays, mean=MEAN, std=STD), random_images(config, 16)
    names, prepared = [linear.name for linear in linear_layers(graph)], with_own_constants(graph)
    statistics = observe(graph, images, SETTINGS, key="k")
    improved, moved = migrate_layernorms(prepared, statistics, replace(SCHEME, plain_norms=True), names)
    constants = initializers(improved)
    plain = {
        node.name
        for node in improved.graph.node
        if node.op_type == "LayerNormalization"
        and (array(constants[node.input[1]]) == 1).all()
        and (array(constants[node.input[2]]) == 0).all()
    }
    assert plain == {"blocks.0.norm1", "blocks.0.norm2", "norm"}
    before, after = run_graph(graph, images), run_graph(improved, images)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    seen = observe(improved, images, SETTINGS, key="k").observed["blocks.0.norm2.out"]
    assert np.allclose(moved.observed["blocks.0.norm2.out"].minimum, seen.minimum, atol=1e-4)


def test_layers_get_constants_of_their_own() -> None:
    config = tiny(depth=2, qkv_bias=False)
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    for node in graph.graph.node:  # tie one block's weights and bias to the other's
        for index, name in enumerate(node.input):
            if name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
                node.input[index] = name.replace("blocks.1", "blocks.0")
    own = with_own_constants(graph)
    layers = linear_layers(own)
    assert all(layer.bias for layer in layers)
    assert len({layer.weight for layer in layers}) == len({layer.bias for layer in layers}) == len(layers)
    images = random_images(config, 4)
    assert np.allclose(run_graph(graph, images), run_graph(own, images), atol=1e-5)


def outlying(config: ViTConfig) -> dict[str, np.ndarray]:
    """Weights with outlier channels at the values and at the GELUs."""
    arrays = random_arrays(config)
    for block in range(config.depth):
        first = sum(config.block(block).qkv[:2])  # of the values' channels
        arrays[f"blocks.{block}.attn.qkv.weight"][first + 3] *= 50
        if config.qkv_bias:
            arrays[f"blocks.{block}.attn.qkv.bias"][first + 5] += 20
        arrays[f"blocks.{block}.mlp.fc1.bias"][7] += 30
    return arrays


NARROW = (
    BlockWidths(heads=2, query_key=5, value=9, mlp_hidden=24),
    BlockWidths(heads=4, query_key=7, value=3, mlp_hidden=13),
)


@pytest.mark.parametrize(
    "changes", [{}, {"qkv_bias": False}, {"qk_norm": True}, {"layer_scale": True}, {"blocks": NARROW}]
)
def test_values_and_gelus_move_without_a_trace(changes: dict[str, object]) -> None:
    config = tiny(**changes)
    graph = author_vit(config, outlying(config), mean=MEAN, std=STD)
    images = random_images(config, 16)
    names = [linear.name for linear in linear_layers(graph)]
    statistics = observe(graph, images, SETTINGS, key="k")
    wanted = Improve(layernorm_migration=True, value_migration=True, gelu_shift=True)
    prepared = with_own_constants(graph)
    for scheme, shifts in ((SCHEME, 0), (Scheme("int8", symmetric=True), config.depth)):
        improved, moved = improve(prepared, statistics, wanted, scheme, names)
        before, after = run_graph(graph, images), run_graph(improved, images)
        assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
        assert sum(node.op_type == "Sub" and node.name.endswith(".shift") for node in improved.graph.node) == shifts
        again = observe(improved, images, SETTINGS, key="k").observed
        for key, seen in again.items():  # what is told of the improved graph is what it does
            told, spread = moved.observed[key], np.abs(seen.maximum).max()
            assert np.allclose(told.minimum, seen.minimum, atol=2e-3 * spread), key
            assert np.allclose(told.mean, seen.mean, atol=2e-3 * spread), key
        spreads = [
            np.ptp(
                [
                    values["blocks.0.attn.context.reshape.out"].minimum,
                    values["blocks.0.attn.context.reshape.out"].maximum,
                ]
            )
            for values in (statistics.observed, moved.observed)
        ]
        assert spreads[1] < spreads[0] / 4


@pytest.mark.parametrize("changes", [{}, {"mlp": "swiglu"}])
def test_what_nothing_in_front_can_take_up_gets_operators_of_its_own(changes: dict[str, object]) -> None:
    config = tiny(**changes)
    arrays = random_arrays(config)
    for block in range(config.depth):  # one hidden unit 200 times as large, which fc2 hardly reads
        gate = config.mlp_hidden if config.mlp == "swiglu" else 0
        arrays[f"blocks.{block}.mlp.fc1.weight"][gate + 7] *= 200
        arrays[f"blocks.{block}.mlp.fc2.weight"][:, 7] /= 200
    graph = author_vit(config, arrays, mean=MEAN, std=STD)
    images = random_images(config, 16)
    names = [linear.name for linear in linear_layers(graph)]
    statistics = observe(graph, images, SETTINGS, key="k")
    prepared = with_own_constants(graph)
    wanted = Improve(layernorm_migration=False, input_migration=True)
    for scheme in (SCHEME, Scheme("int8", symmetric=True)):
        improved, moved = improve(prepared, statistics, wanted, scheme, names)
        before, after = run_graph(graph, images), run_graph(improved, images)
        assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
        constants = {name: array(tensor) for name, tensor in initializers(improved).items() if name.endswith(".by")}
        assert sorted(constants) == sorted(
            f"blocks.{block}.mlp.{'gate' if changes else 'act'}.{part}.by" for block in range(2) for part in PARTS
        )
        for name, values in constants.items():  # what half precision makes of them is what they are
            assert np.array_equal(values.astype(np.float16).astype(np.float32), values), name
            assert ".scale" not in name or (np.frexp(values)[0] == 0.5).all(), "powers of two"
        again = observe(improved, images, SETTINGS, key="k").observed
        for key, seen in again.items():
            told, spread = moved.observed[key], np.abs(seen.maximum).max()
            assert np.allclose(told.minimum, seen.minimum, atol=2e-3 * spread), key
            assert np.allclose(told.mean, seen.mean, atol=2e-3 * spread), key
        left, _ = improve(prepared, statistics, wanted, scheme, [name for name in names if "fc2" not in name])
        assert left == prepared, "layers that stay in float get none"


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=20)
def test_operators_are_exact_in_float64_and_need_outliers(seed: int, outliers: bool) -> None:
    """A GELU and the linear behind it, before and after, to 1e-5 of the largest output."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((200, 16)) * np.where(np.arange(16) == 3, 300.0 if outliers else 1.0, 1.0)
    rows = z / (1 + np.exp(np.minimum(-1.702 * z, 700)))  # a GELU, nearly
    matrix = random.standard_normal((16, 7)) / np.where(np.arange(16) == 3, 300.0 if outliers else 1.0, 1.0)[:, None]
    wanted = Improve(layernorm_migration=False, input_migration=True, gelu_shift=False)
    shift, scale = by_operators(observed_of(rows), matrix, SCHEME, wanted, centred=True)
    assert ((shift == 0).all() and (scale == 1).all()) == (not outliers)
    before, after = rows @ matrix, (rows - shift) / scale @ (matrix * scale[:, None]) + shift @ matrix
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_values_are_left_alone_where_something_else_reads_them() -> None:
    config = tiny(depth=1)
    graph = author_vit(config, outlying(config), mean=MEAN, std=STD)
    statistics = observe(graph, random_images(config, 16), SETTINGS, key="k")
    prepared = with_own_constants(graph)
    context = next(node for node in prepared.graph.node if node.name == "blocks.0.attn.context.reshape").output[0]
    prepared.graph.output.append(onnx.helper.make_tensor_value_info(context, onnx.TensorProto.FLOAT, None))
    wanted = Improve(layernorm_migration=False, value_migration=True, gelu_shift=False)
    improved, _ = improve(prepared, statistics, wanted, SCHEME, ["blocks.0.attn.proj"])
    assert improved == prepared
    wanted = Improve(layernorm_migration=False, value_migration=True, input_migration=True)
    improved, _ = improve(prepared, statistics, wanted, SCHEME, ["blocks.0.attn.proj"])
    added = [node.name for node in improved.graph.node if node not in prepared.graph.node and node.op_type != "MatMul"]
    assert added == ["blocks.0.attn.context.reshape.shift", "blocks.0.attn.context.reshape.scale"]
    assert context in {output.name for output in improved.graph.output}, "whoever else reads it still does"
    del improved.graph.output[1:], prepared.graph.output[1:]
    images = random_images(config, 8, seed=5)
    before, after = run_graph(prepared, images), run_graph(improved, images)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=20)
def test_compensation_is_the_ridge_solution_and_helps(seed: int, unbiased: bool) -> None:
    """Dependent inputs, coarsely rounded: the output error over fresh rows falls, or nothing is changed."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((5, 12))
    rows, fresh = (random.standard_normal((count, 5)) @ mix + 0.01 for count in (400, 400))
    matrix = random.standard_normal((12, 6))
    grid = affine(rows.min(), rows.max(), SCHEME)._replace(scale=np.float32(0.9))
    found = compensated(matrix, observed_of(rows), grid, unbiased=unbiased)

    def error(weights: np.ndarray) -> float:
        difference = grid.fake(fresh) @ weights - fresh @ matrix
        return float(
            (difference - (difference.mean(axis=0) if unbiased else 0)).var() if unbiased else (difference**2).mean()
        )

    assert error(found) < 0.8 * error(matrix)


def test_compensation_leaves_exact_inputs_alone() -> None:
    rows = np.random.default_rng(0).integers(-20, 20, (64, 8)).astype(float)
    matrix = np.random.default_rng(1).standard_normal((8, 3))
    grid = affine(-127, 127, Scheme("int8", symmetric=True))
    assert np.array_equal(compensated(matrix, observed_of(rows), grid, unbiased=False), matrix)
