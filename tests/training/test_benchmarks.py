"""What the issue's bars ask of training, by the scripts that anyone can run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitedge

pytest.importorskip("torch", reason="torch isn't installed (vitedge[train])")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def figures(script: str, *arguments: str) -> dict[str, object]:
    """The last line that a script prints."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_pictures_a_class_are_worth_more_from_the_embedded_model(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn isn't installed (vitedge[dev])")
    found = figures("few_shot.py", "--folder", str(tmp_path))
    embedded = found["embedded"]
    assert isinstance(embedded, dict) and isinstance(found["points"], float)
    assert embedded["images"] == 1797 - 200
    assert found["points"] >= 10
    assert embedded["top1_percent"] >= 85


@pytest.mark.slow
def test_throughput_is_reported() -> None:
    """Only that it's measured: how fast a machine is while tests run on it means nothing."""
    arguments = (
        "--model",
        "vit_nano_patch4_32",
        "--batch-size",
        "8",
        "--steps",
        "2",
        "--rounds",
        "3",
        "--threads",
        "1",
    )
    found = figures("training_throughput.py", *arguments)
    assert isinstance(found["rounds"], list) and len(found["rounds"]) == 3
    assert isinstance(found["of_bare_loop"], float) and found["of_bare_loop"] > 0


def test_an_ensemble_is_the_mean_over_models_and_mirror_images(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed (vitedge[host])")
    model = vitedge.import_model("embedded", tmp_path / "model").path
    command = [sys.executable, str(BENCHMARKS / "ensemble.py"), *[str(model)] * 2, "--out", str(tmp_path / "teacher")]
    subprocess.run(command, check=True)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    alone, together = (
        onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
        for path in (model, tmp_path / "teacher")
    )
    views = [alone.run(None, {"image": np.ascontiguousarray(view)})[0] for view in (frames, frames[:, :, ::-1])]
    (found,) = together.run(None, {"image": frames})
    assert np.allclose(found, np.mean(views, axis=0), atol=1e-5)
    assert not np.allclose(*views, atol=1e-2), "a mirror image is another picture"


def test_a_soup_has_the_mean_of_the_weights(tmp_path: Path) -> None:
    from msgspec.structs import replace
    from safetensors.numpy import load_file, save

    from vitedge.formats.model_folder import Model, write_model

    model = vitedge.import_model("embedded", tmp_path / "model")
    doubled = {name: 2 * value for name, value in load_file(model.path / "model.safetensors").items()}
    files = {"model.safetensors": save(doubled), "model.onnx": model.onnx_path.read_bytes()}
    other = write_model(tmp_path / "other", replace(model.record, files={}), files)
    soup = tmp_path / "soup"
    command = [sys.executable, str(BENCHMARKS / "soup.py"), str(model.path), str(other.path), "--out", str(soup)]
    subprocess.run(command, check=True)
    found, record = load_file(soup / "model.safetensors"), Model.open(soup).record
    assert all(np.allclose(found[name], 0.75 * value, rtol=2e-3, atol=1e-4) for name, value in doubled.items())
    assert (record.classes, record.architecture) == (model.record.classes, model.record.architecture)
    assert record.accuracy is None
