"""Session output equals the torch reference on real photographs, from the picture on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitedge
from vitedge import runtimes

torch = pytest.importorskip("torch", reason="the reference is a torch module")


def torch_logits(
    config: object, arrays: dict[str, np.ndarray], preprocessing: object, images: np.ndarray
) -> np.ndarray:
    """float64 forward of our torch module, from uint8 [n, h, w, 3]."""
    from vitedge.training.vit import VisionTransformer

    module = VisionTransformer(config, folded=True).eval().double()
    module.load_state_dict({name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in arrays.items()})
    pixels = torch.from_numpy(images).double() * preprocessing.rescale
    mean, std = torch.tensor(preprocessing.mean).double(), torch.tensor(preprocessing.std).double()
    with torch.no_grad():
        return np.concatenate([module(part.permute(0, 3, 1, 2)).numpy() for part in ((pixels - mean) / std).split(25)])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_float32_session_equals_torch_on_the_photographs(target: str, photos: list[Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    if runtimes.installed(target) is None:
        pytest.skip(f"{target} isn't installed")
    model = vitedge.import_model("embedded", out=tmp_path / "model")
    artifact = vitedge.export(model, target=target, precision="fp32", out=tmp_path / "artifact")
    arrays = load_file(Path(vitedge.__file__).parent / "data" / "embedded" / "model.safetensors")
    pictures = [Image.open(path) for path in photos]
    assert any(picture.mode == "L" for picture in pictures)
    with vitedge.open(artifact) as session:
        frames = np.stack([session.preprocess(picture) for picture in pictures])
        logits = np.stack(list(session.map_batches(frames)))
    expected = torch_logits(model.record.architecture, arrays, model.record.preprocessing, frames)
    assert len(logits) == 125
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
