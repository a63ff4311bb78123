"""Graphs as shrinking leaves them, lowered for TensorRT: operator tables, Q/DQ that fuse, and a real builder."""

from __future__ import annotations

from functools import cache

import onnx
import pytest
from msgspec.structs import replace

from tests.graph.test_canonical import EXPORTS, LOGITS, convert
from tests.graph.vits import tiny
from tests.runtimes.test_tensorrt_rtx import capable
from tests.runtimes.typed_vits import pictures, request, trained_like
from vitedge import runtimes
from vitedge.core.deviation import deviation
from vitedge.formats.architecture import ConvStem, ViTConfig
from vitedge.graph.surgery import load, parse
from vitedge.runtimes._nvidia.fusing import unfused
from vitedge.runtimes._nvidia.parser_check import parse_and_build
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.shrink import shrink

CONFIG = tiny(embed_dim=96, num_heads=3, mlp_hidden=192, depth=3, stem=ConvStem(channels=(24, 32), strides=(2, 4)))
#: Unequal from block to block, heads of odd sizes, a head and two branches fewer, a narrower stem and embedding.
WIDTHS = {
    "patch_embed.stem.0": 11,
    "blocks.0.attn.query_key": 13,
    "blocks.0.attn.value": 21,
    "blocks.0.mlp": 104,
    "blocks.1.attn.heads": 0,
    "blocks.1.mlp": 88,
    "blocks.2.attn.heads": 2,
    "blocks.2.attn.query_key": 8,
    "blocks.2.mlp": 0,
    "embedding": 72,
}
HYBRID = {"/stem/stem.0/Conv": 5, "block.output.query_key": 5, "block.output.value": 6, "block.wide": 12}
TABLES = ("10.3", "10.16", "11")


@cache
def shrunk(name: str) -> tuple[onnx.ModelProto, ViTConfig]:
    """A shrunk graph, and a configuration whose input is like its."""
    if name == "vit":
        return shrink(trained_like(CONFIG), WIDTHS, pictures(CONFIG, 16)).model, CONFIG
    hybrid, _ = convert(load(EXPORTS / "hybrid-17.onnx"), LOGITS["hybrid-17"])
    size = [each.dim_value for each in hybrid.graph.input[0].type.tensor_type.shape.dim][1:3]
    config = tiny(image_size=(size[0], size[1]))
    return shrink(hybrid, HYBRID, pictures(config, 16)).model, config


CASES = [("vit", "int8"), ("hybrid", "int8"), ("vit", "fp16"), ("vit", "fp8"), ("hybrid", "fp16"), ("hybrid", "fp8")]
QUICK = 2  # of these in the short suite


@pytest.mark.parametrize(
    ("name", "precision"),
    [case if number < QUICK else pytest.param(*case, marks=pytest.mark.slow) for number, case in enumerate(CASES)],
)
def test_a_shrunk_graph_passes_the_tables_and_computes_nearly_the_same(name: str, precision: str) -> None:
    graph, config = shrunk(name)
    wish = request(graph, config, precision, images=pictures(config, 8))
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    data, check = lowered.files[lowered.graph], runtimes.part("tensorrt", "preflight").check
    for version in TABLES:
        assert check(data, replace(wish.target, runtime_min=version)) == []
    assert unfused(parse(data)) == []
    images = pictures(config, 6, seed=9)
    near = {"fp16": 0.01, "int8": 0.1, "fp8": 0.2}[precision]
    assert deviation(run_graph(lowered.interpretable, images), run_graph(graph, images)) < near


@pytest.mark.skipif(runtimes.installed("tensorrt_rtx") is None, reason="TensorRT-RTX isn't installed")
@pytest.mark.parametrize(
    ("name", "precision", "sms"),
    [
        ("vit", "int8", ("8.6",)),
        ("hybrid", "int8", ("12.0",)),
        *(pytest.param(*case, capable(case[1]), marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_shrunk_graph_builds(name: str, precision: str, sms: tuple[str, ...]) -> None:
    graph, config = shrunk(name)
    wish = request(graph, config, precision, images=pictures(config, 2))
    lowered = runtimes.part("tensorrt", "lowering").lower(wish)
    report = parse_and_build(lowered.files[lowered.graph], sms)
    assert report.errors == {} and tuple(report.engines) == sms
