"""``vitedge inspect``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import fails, vitedge
from tests.reporting import results
from vitedge.formats.result import write_result


def test_a_model(small_model: Path) -> None:
    done = vitedge("inspect", small_model)
    assert done.code == 0, done.err
    for words in ("CC0-1.0", "uint8 RGB [batch, 32, 32, 3]", "it becomes 32×32 pixels", "ant"):
        assert words in done.out


def test_json_alone(small_model: Path) -> None:
    found = json.loads(vitedge("inspect", small_model, "--json", "-").out)
    assert found["kind"] == "model" and found["record"]["preprocessing"]["size"] == [32, 32]


def test_onnx(small_model: Path) -> None:
    done = vitedge("inspect", small_model / "model.onnx")
    assert done.code == 0 and "LayerNormalization" in done.out and "linear layers" in done.out


def test_a_result(tmp_path: Path) -> None:
    write_result(results.demo(), tmp_path / "result.json")
    done = vitedge("inspect", tmp_path)
    assert done.code == 0 and "cifar-vit-openvino-int8" in done.out and "AMD EPYC, 2 cores" in done.out


def test_a_damaged_model_is_refused_by_its_file(small_model: Path, tmp_path: Path) -> None:
    for path in small_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "model.onnx").read_bytes())
    data[1000] ^= 1
    (tmp_path / "model.onnx").write_bytes(data)
    _, reason, _ = fails(3, "inspect", tmp_path)
    assert "model.onnx" in reason


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    _, reason, hint = fails(2, "inspect", tmp_path)
    assert reason == "it's neither a model, an artifact, a result nor an ONNX file" and ".onnx" in hint
