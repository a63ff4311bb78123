"""Improvements change what is rounded, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.vits import MEAN, STD, random_arrays, random_images, tiny
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import array, initializers, linear_layers
from vitedge.quantize.improve import ALPHAS, migrate_layernorms, migration
from vitedge.quantize.integers import Scheme
from vitedge.quantize.observe import observe
from vitedge.quantize.prepare import with_own_constants
from vitedge.quantize.statistics import Observed
from vitedge.recipe import Observe
from vitedge.runtimes.onnxruntime.interpret import run_graph

SETTINGS = Observe(num_samples=16, seed=0, reservoir_rows=128, histogram_bins=64)
SCHEME = Scheme("uint8", symmetric=False, weight_bits=7)


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
        arrays[f"blocks.{block}.norm2.bias"][5] += 20
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
    graph = author_vit(config, random_arrays(config), mean=MEAN, std=STD)
    statistics = observe(graph, random_images(config, 16), SETTINGS, key="k")
    prepared = with_own_constants(graph)
    improved, moved = migrate_layernorms(prepared, statistics, SCHEME, ["blocks.0.mlp.fc1"])
    before, after = initializers(prepared), initializers(improved)
    for name in ("blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "norm.weight", "head.weight"):
        assert np.array_equal(array(before[name]), array(after[name])), name
    assert not np.array_equal(array(before["blocks.0.norm2.weight"]), array(after["blocks.0.norm2.weight"]))
    assert moved.observed["blocks.0.norm1.out"] is statistics.observed["blocks.0.norm1.out"]


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
