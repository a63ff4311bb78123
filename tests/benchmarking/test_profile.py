"""Layers mapped back to the model by their names and operators, as runtimes spell them."""

from __future__ import annotations

import pytest

from vitedge.benchmarking.profile import by_block, by_part, located, profile_of
from vitedge.runtimes.base import LayerTime

#: (name, operator, type, part, block) as OpenVINO 2026 and ONNX Runtime 1.31 name them.
OPENVINO = [
    ("image.nchw_original", "Transpose", "int8", "input", None),
    ("image.mean_abcd_acdb_patch_embed.proj/WithoutBiases", "Reorder", "fp32", "input", None),
    ("patch_embed.proj", "Convolution", "fp32", "patch embedding", None),
    ("pos_embed", "Subgraph", "fp32", "patch embedding", None),
    ("MVN.85", "MVN", "fp32", "norm", 0),
    ("Multiply.87", "Subgraph", "fp32", "norm", 0),
    ("blocks.0.attn.qkv", "FullyConnected", "int8", "attention", 0),
    ("blocks.0.attn.scores", "Subgraph", "fp32", "attention", 0),
    ("blocks.0.add1", "Subgraph", "fp32", "residual", 0),
    ("MVN.169", "MVN", "fp32", "norm", 0),
    ("blocks.0.mlp.fc1", "FullyConnected", "int8", "mlp", 0),
    ("blocks.0.add2", "Subgraph", "fp32", "residual", 0),
    ("MVN.232", "MVN", "fp32", "norm", 11),
    ("blocks.11.mlp.fc2", "FullyConnected", "int8", "mlp", 11),
    ("head", "FullyConnected", "fp32", "head", None),
]
ONNXRUNTIME = [
    ("image.float", "Cast", "fp32", "input", None),
    ("patch_embed.stem.0.act.out_q", "QuantizeLinear", "", "quantize", None),
    ("patch_embed.stem.1.conv", "MatMulIntegerToFloat", "int8", "patch embedding", None),
    ("blocks.0.norm1", "LayerNormalization", "fp32", "norm", 0),
    ("gemm_input_reshape", "Reshape", "fp32", "attention", 0),
    ("blocks.0.attn.qkv", "Gemm", "fp32", "attention", 0),
    ("blocks.0.attn.softmax", "Softmax", "fp32", "attention", 0),
    ("blocks.0.norm2", "SkipLayerNormalization", "fp32", "norm", 0),
    ("blocks.0.mlp.fc1.input.dq", "DequantizeLinear", "fp32", "quantize", 0),
    ("blocks.0.mlp.fc1", "DynamicQuantizeMatMul", "int8", "mlp", 0),
    ("logits", "Gemm", "fp32", "head", None),
]


TENSORRT = [
    ("image.float+image.nchw+patch_embed.proj", "gemm", "fp16", "patch embedding", None),
    ("blocks.0.norm1+blocks.0.attn.qkv.input.q", "kgen", "fp16", "norm", 0),
    ("blocks.0.attn.qkv+blocks.0.attn.qkv.bias", "gemm", "int8", "attention", 0),
    ("blocks.0.attn.scores+blocks.0.attn.softmax+blocks.0.attn.context", "fmha", "fp16", "attention", 0),
    ("blocks.0.add1+blocks.0.norm2+blocks.0.mlp.fc1", "gemm", "int8", "mlp", 0),
    ("blocks.0.mlp.fc2+blocks.0.add2+blocks.1.norm1", "gemm", "int8", "mlp", None),
    ("{ForeignNode[blocks.1.attn.qkv...head]}", "Myelin", "", "fused", None),
    ("Reformatting CopyNode for Output Tensor 0 to logits", "Reformat", "fp32", "head", None),
]


@pytest.mark.parametrize("spelling", [OPENVINO, ONNXRUNTIME, TENSORRT], ids=["openvino", "onnxruntime", "tensorrt"])
def test_every_node_finds_its_place(spelling: list[tuple[str, str, str, str, int | None]]) -> None:
    rounds = [[LayerTime(name, operator, type_, 1000) for name, operator, type_, _, _ in spelling] for _ in range(3)]
    profile = profile_of(rounds)
    assert profile is not None
    found = located(profile)
    assert [(place.layer.name, place.part, place.block) for place in found] == [
        (name, part, block) for name, _, _, part, block in spelling
    ]
    assert sum(by_part(profile).values()) == 1000 * len(spelling)
    assert sum(sum(parts.values()) for parts in by_block(profile).values()) == 1000 * len(spelling)


def test_times_are_medians_and_odd_rounds_are_left_out() -> None:
    def nodes(ns: int, *more: str) -> list[LayerTime]:
        return [LayerTime(name, "Gemm", "fp32", ns) for name in ("blocks.0.attn.qkv", *more)]

    profile = profile_of([nodes(5), nodes(900), nodes(7), nodes(1, "another")])
    assert profile is not None and profile.layers[0].ns == (5, 900, 7)
    assert by_part(profile) == {"attention": 7} and by_block(profile) == {0: {"attention": 7}}


def test_nothing_to_profile() -> None:
    assert profile_of([]) is None and profile_of([[], []]) is None


def test_foreign_names_are_other() -> None:
    profile = profile_of([[LayerTime("/Add_17", "Add", "fp32", 3), LayerTime("node", "LayerNormalization", "", 4)]])
    assert profile is not None and by_part(profile) == {"norm": 4, "other": 3}
