"""A hybrid network is imported, quantized where it has linear layers and convolutions, and still says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitedge
from tests.graph.vits import MEAN, STD, random_images, tiny
from vitedge.core.deviation import deviation
from vitedge.graph.surgery import attribute, linear_layers, load
from vitedge.importing.entry import import_model, summary
from vitedge.runtimes._nvidia.fusing import unfused

EXPORTS = Path(__file__).resolve().parent.parent / "graph" / "exports"
IMAGES = random_images(tiny(), 12)
LEFT = {
    "hybrid-17": "Sigmoid ×2",
    "windows-23": "Concat",
    "rows-18": "HardSwish ×2",
    "folded-20": "Sigmoid",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", LEFT)
def test_a_hybrid_can_be_quantized(name: str, target: str, tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip(target)
    contract = {"size": (32, 48), "mean": MEAN, "std": STD, "resize": "squash"}
    model = import_model(EXPORTS / f"{name}.onnx", tmp_path / "model", images=pictures, preprocessing=contract)
    row = summary(model)
    assert row["graph"] == "kept as it came" and LEFT[name] in row["operators_left_alone"]
    others = tmp_path / "others"
    others.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image[::-1]).save(others / f"{number}.png")
    options = {"data": pictures, "num_samples": len(IMAGES), "held_out": others}
    artifact = vitedge.export(model, target, "int8", tmp_path / "artifact", **options)
    assert artifact.manifest.precision_obtained["int8"] > 0.1
    expected = np.load(EXPORTS / "logits.npz")[name]
    with vitedge.open(artifact, threads=1) as session:
        found = np.concatenate([session.run(image[None]) for image in IMAGES[: len(expected)]])
    assert 0 < deviation(found, expected) < 0.1


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("name", LEFT)
def test_a_hybrid_is_quantized_for_tensorrt(name: str, precision: str, tmp_path: Path, pictures: Path) -> None:
    """Its operators are held against the tables by export, and Q/DQ stand where TensorRT fuses them.

    But where a residual stream in float ends in a quantized layer: rounding the stream would cost accuracy.
    """
    contract = {"size": (32, 48), "mean": MEAN, "std": STD, "resize": "squash"}
    model = import_model(EXPORTS / f"{name}.onnx", tmp_path / "model", images=pictures, preprocessing=contract)
    others = tmp_path / "others"
    others.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image[::-1]).save(others / f"{number}.png")
    options = {"data": pictures, "num_samples": len(IMAGES), "held_out": others, "recipe": "fast"}
    artifact = vitedge.export(model, "jetson-thor", precision, tmp_path / "artifact", **options)
    manifest = artifact.manifest
    assert manifest.variant == f"linears-convs-{precision}-rest-fp16" and manifest.precision_obtained[precision] > 0.1
    rules = [each.rule for each in unfused(load(artifact.graph_path))]
    assert rules == (["residual"] if name == "folded-20" else [])
    groups = [layer.name for layer in linear_layers(load(model.onnx_path)) if attribute(layer.node, "group", 1) > 1]
    reasons = {layer.name: layer.reason for layer in manifest.layers}
    assert {reasons[name] for name in groups} <= {"grouped convolution"}
    assert manifest.golden.deviation < 0.1
