"""The Python interface, as the README shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitedge
from vitedge.errors import UsageError


def test_the_readme_example(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    model = vitedge.import_model(small_model / "model.onnx", out=tmp_path / "model", labels=small_data)
    artifact = vitedge.export(
        model, target="onnxruntime", precision="int8", data=small_data, num_samples=32, out=tmp_path / "artifact"
    )
    picture = Image.open(small_data / "bee" / "3.png")
    with vitedge.open(artifact, threads=2) as session:
        frame = session.preprocess(picture)
        assert frame.dtype == np.uint8 and frame.shape == (32, 32, 3)
        logits = session.run(frame[None])
        assert logits.dtype == np.float32 and logits.shape == (1, 5)
        predictions = session.classify(picture, top_k=5)
    assert [prediction.label for prediction in predictions] == [session.classes[i].name for i in np.argsort(-logits[0])]
    assert sum(prediction.probability for prediction in predictions) == pytest.approx(1, abs=1e-5)


def test_equal_inputs_give_equal_artifacts(small_model: Path, small_data: Path, tmp_path: Path) -> None:
    options = {"target": "onnxruntime", "precision": "int8", "data": small_data, "num_samples": 32}
    first = vitedge.export(small_model, **options, out=tmp_path / "first")
    second = vitedge.export(small_model, **options, out=tmp_path / "second")
    assert first.digest == second.digest
    other = vitedge.export(small_model, **{**options, "num_samples": 31}, out=tmp_path / "other")
    assert other.digest != first.digest


def test_a_second_export_observes_no_picture(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitedge.quantization.observe import Observer

    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    options = {"precision": "int8", "data": small_data, "num_samples": 29}
    first = vitedge.export(small_model, "onnxruntime", **options, out=tmp_path / "first")
    monkeypatch.setattr(Observer, "add", lambda *_: pytest.fail("observed again"))
    second = vitedge.export(small_model, "raspberry-pi-5", **options, out=tmp_path / "second")
    assert second.manifest.calibration == first.manifest.calibration
    with pytest.raises(pytest.fail.Exception, match="observed again"):
        vitedge.export(small_model, "onnxruntime", **{**options, "num_samples": 28}, out=tmp_path / "third")


def test_session_refuses_another_shape(small_model: Path, tmp_path: Path) -> None:
    artifact = vitedge.export(small_model, target="onnxruntime", precision="fp32", out=tmp_path / "artifact")
    with vitedge.open(artifact) as session, pytest.raises(UsageError, match=r"expected uint8 \[1, 32, 32, 3\]"):
        session.run(np.zeros((1, 16, 16, 3), np.uint8))


def test_names_are_offered_lazily() -> None:
    assert set(dir(vitedge)) >= {"import_model", "export", "open", "bench", "evaluate", "verify", "classify"}
    with pytest.raises(AttributeError, match="exprot"):
        vitedge.exprot  # noqa: B018
