"""A hybrid network is imported, quantized where it has linear layers and convolutions, and still says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitedge
from tests.graph.vits import MEAN, STD, random_images, tiny
from vitedge.core.deviation import deviation
from vitedge.importing.entry import import_model, summary

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
