"""What a profile and a plan say, in sentences."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import vitedge
from vitedge.api import plan_export
from vitedge.exporting import write
from vitedge.exporting.explain import explain
from vitedge.formats.artifact import Artifact
from vitedge.runtimes.base import LayerTime


@pytest.fixture(scope="module")
def artifact(small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("explained") / "a"
    return vitedge.export(small_model, "onnxruntime", "int8", out, data=small_data, num_samples=16, recipe="fast")


def times(scale: int, *, quantize: int = 0, fused: bool = False) -> list[list[LayerTime]]:
    nodes = [
        LayerTime("blocks.0.mlp.fc1", "MatMul", "fp32", 1000 * scale),
        LayerTime("blocks.0.norm1", "LayerNormalization", "fp32", 500),
        LayerTime("blocks.0.attn.q.transpose", "Transpose", "fp32", 300),
    ]
    if quantize:
        nodes.append(LayerTime("blocks.0.mlp.fc1.input.q", "QuantizeLinear", "", quantize))
    if fused:
        nodes.append(LayerTime("blocks.0.attn.qkv+blocks.0.attn.scores", "QAttention", "int8", 100 * scale))
    return [nodes, nodes, nodes]


def test_faster_and_slower_are_said_with_what_they_come_from(artifact: Artifact) -> None:
    fast = explain("a", artifact.manifest, times(10), times(3, quantize=900, fused=True))
    words = " ".join(fast.sentences)
    assert "int8 is 2.16× as fast as float32 here" in words and "0.01 ms before" in words
    assert "mlp: 10 µs before, 3 after: saves 7 µs." in fast.sentences
    assert "Quantizing and dequantizing in between, 1 node: 1 µs, at blocks.*.mlp.fc1.input.q (1)." in fast.sentences, (
        fast.sentences
    )
    moving = "Only moving data (transposes, reorders), 1 node: 0 µs, at blocks.*.attn.q.transpose (0); "
    assert f"{moving}float32 has 1, 0 µs." in fast.sentences
    assert any(line.startswith("Fused: 1 × QAttention") and "blocks.0.attn.qkv+" in line for line in fast.sentences)
    assert not any("because" in line for line in fast.sentences)
    slow = explain("a", artifact.manifest, times(3), times(10))
    assert any("int8 is 2.84× slower than float32 here" in line for line in slow.sentences)
    assert "mlp: 3 µs before, 10 after: costs 7 µs." in slow.sentences
    assert "int8 is slower here because the layers themselves take 7 µs more in it." in slow.sentences
    row = next(layer for layer in fast.layers if layer.name == "blocks.0.mlp.fc1")
    assert (row.precision, row.before_us, row.after_us) == ("int8", 10, 3)


def test_layers_inside_another_node_are_named(artifact: Artifact) -> None:
    nodes = [
        LayerTime(layer.name, "QAttention" if layer.name.endswith("qkv") else "MatMul", "int8", 1000)
        for layer in artifact.manifest.layers
        if not layer.name.endswith((".scores", ".context"))
    ]
    found = explain("a", artifact.manifest, [nodes] * 3, [nodes] * 3)
    fused = [line for line in found.sentences if line.startswith("Fused")]
    assert len(fused) == 1 and "× QAttention, with blocks.*.attn.scores and blocks.*.attn.context inside." in fused[0]


def test_why_integers_gain_nothing(artifact: Artifact) -> None:
    """What the layers save goes into rounding and moving; a processor may have no instruction for it."""
    plain = times(10)
    rounding = [*times(8)[0], LayerTime("blocks.0.mlp.fc1.input.q", "QuantizeLinear", "", 2500)]
    rounding.append(LayerTime("blocks.0.mlp.reorder", "Reorder", "", 1000))
    for isa, told in ((("avx2",), True), (("avx2", "avx512_vnni"), False), (None, False)):
        found = explain("a", artifact.manifest, plain, [rounding] * 3, isa)
        (why,) = (line for line in found.sentences if "because" in line)
        assert why == (
            "int8 is slower here because quantizing in between takes 2 µs, moving data takes 1 µs more, "
            "and the layers save only 2 µs."
        )
        assert any("no instruction that adds products of bytes" in line for line in found.sentences) is told


def test_reasons_and_sensitivities_without_a_profile(artifact: Artifact) -> None:
    plan = [
        replace(layer, sensitivity=index / 1000, precision="int8" if index else "fp32")
        for index, layer in enumerate(artifact.manifest.layers)
    ]
    plan[0] = replace(plan[0], reason="it's the first")
    found = explain("a", replace(artifact.manifest, layers=tuple(plan)))
    assert all(layer.before_us is None and layer.after_us is None for layer in found.layers)
    assert f"{plan[0].name} stays in float: it's the first." in found.sentences
    assert found.sentences[-1].startswith(f"Rounding costs most in {plan[-1].name} (KL")
    plain = explain("a", replace(artifact.manifest, layers=tuple(replace(layer, precision="fp32") for layer in plan)))
    assert plain.sentences[0] == "Nothing is quantized."


def test_an_export_explains_itself(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    plan = plan_export(
        small_model,
        "onnxruntime",
        "int8",
        tmp_path / "a",
        data=small_data,
        num_samples=16,
        recipe="fast",
        explain=True,
    )
    written = write.export(plan)
    found = write.explain(plan, written)
    quantized = [layer for layer in found.layers if layer.precision == "int8"]
    assert quantized and all(layer.sensitivity is not None and layer.sensitivity >= 0 for layer in quantized)
    assert all(layer.before_us and layer.after_us for layer in quantized)
    assert np.isclose(sum(layer.fraction_of_macs for layer in found.layers), 1)
    assert "in int8" in found.sentences[0] and "float32 here" in " ".join(found.sentences)
    elsewhere = plan_export(
        small_model,
        "raspberry-pi-5",
        "int8",
        tmp_path / "pi",
        data=small_data,
        num_samples=16,
        recipe="fast",
        explain=True,
    )
    assert all(layer.after_us is None for layer in write.explain(elsewhere, write.export(elsewhere)).layers)


def test_fusing_of_qdq_is_explained_without_a_gpu(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    options = {"data": small_data, "num_samples": 16, "recipe": "fast", "explain": True}
    plan = plan_export(small_model, "jetson-orin-nano", "int8", tmp_path / "a", **options)
    found = write.explain(plan, write.export(plan))
    assert re.fullmatch(r"All \d+ Q/DQ stand where TensorRT fuses them, by NVIDIA's rules\.", found.sentences[-1])
