"""The rows that matter more than others: those that are read, and the tokens that the head reads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.vits import authored, tiny
from vitedge.formats.architecture import ViTConfig
from vitedge.graph.unused_tokens import Span
from vitedge.quantization.views import quantizable
from vitedge.shrinking.moments import HeadMoments, Moments, Rows

CLASS = Span(1, 0, 1)


def test_the_class_token_matters_more_in_every_block() -> None:
    config = tiny(depth=3)
    rows, tokens = Rows(authored(config)), np.zeros((2, config.tokens, config.embed_dim))
    for name in ("blocks.0.attn.qkv.bias.out", "blocks.1.add2.out", "blocks.0.mlp.fc2.bias.out"):
        assert rows.read(name) is None and rows.heavy(name, tokens) == CLASS
    assert rows.read("blocks.2.add2.out") == CLASS == rows.heavy("blocks.2.add2.out", tokens)
    assert rows.heavy("norm.out", tokens[:, 0]) is None, "one row a picture"
    assert rows.heavy("stage.out", np.zeros((2, 8, 8, 4))) is None, "rows of a picture aren't tokens"
    assert rows.heavy("blocks.0.add1.out", tokens[:, :1]) is None, "a single token"


@pytest.mark.parametrize("config", [tiny(pool="avg", class_token=False), tiny(pool="avg")], ids=["alone", "unused"])
def test_where_the_head_reads_all_tokens_they_are_alike(config: ViTConfig) -> None:
    rows, tokens = Rows(authored(config)), np.zeros((2, config.tokens, config.embed_dim))
    assert rows.heavy("blocks.0.add1.out", tokens) is None


def test_heavy_rows_weigh_as_much_as_all_together() -> None:
    config, random = tiny(depth=2), np.random.default_rng(0)
    graph = authored(config)
    layer = next(each for each in quantizable(graph)[0] if each.name == "blocks.0.mlp.fc2")
    read = random.standard_normal((3, config.tokens, layer.inputs)).astype(np.float32)
    given = random.standard_normal((3, config.tokens, layer.outputs)).astype(np.float32)
    found, expected = Moments(), Moments()
    found.add(layer.view, read, given, Rows(graph), layer.linear.output)
    repeated = [np.concatenate([each, np.repeat(each[:, :1], config.tokens, axis=1)], axis=1) for each in (read, given)]
    expected.add_rows(*(each.reshape(-1, each.shape[-1]) for each in repeated))
    for name in ("mean", "target_mean", "covariance", "cross", "target_variance"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    np.testing.assert_allclose(found.mean_output, given.reshape(-1, layer.outputs).mean(axis=0), atol=1e-5)


def test_heavy_queries_weigh_as_much_as_all_together() -> None:
    config, random = tiny(depth=2), np.random.default_rng(0)
    queries, keys = random.standard_normal((2, 4, config.tokens, 3, 8)).astype(np.float32)
    found, expected = HeadMoments(), HeadMoments()
    tensor = "blocks.0.attn.q.reshape.out"
    found.add(queries, keys, Rows(authored(config)), tensor)
    none = Rows(authored(tiny(pool="avg", class_token=False)))
    expected.add(
        np.concatenate([queries, np.repeat(queries[:, :1], config.tokens, axis=1)], axis=1), keys, none, tensor
    )
    np.testing.assert_allclose(found.queries, 2 * expected.queries, rtol=1e-4)
    np.testing.assert_allclose(found.keys, expected.keys, rtol=1e-6)
