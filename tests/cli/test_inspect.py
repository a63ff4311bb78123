"""``vitedge inspect``."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import vitedge as package
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
    assert reason == "it's neither a model, an artifact, a result, a folder of engines nor an ONNX file"
    assert ".onnx" in hint


@pytest.fixture(scope="module")
def commands(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What ``--commands`` prints, by the tool, of an artifact whose path a shell would split."""
    folder = tmp_path_factory.mktemp("with a space") / "an artifact"
    made = package.export(small_model, "jetson-orin-nano", "fp16", folder, batch=3)
    done = vitedge("inspect", made.path, "--commands")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("# ")]
    assert lines == [row["command"] for row in package.commands(made.path)]
    return {words[0]: words for words in map(shlex.split, lines)}


def test_a_command_line_for_trtexec(commands: dict[str, list[str]]) -> None:
    graph = commands["polygraphy"][2]
    assert Path(graph).name == "model.onnx" and Path(graph).is_file()
    assert commands["trtexec"][1:] == [
        f"--onnx={graph}",
        "--stronglyTyped",
        "--noTF32",
        "--memPoolSize=workspace:1024",
        "--timingCacheFile=an artifact.cache",
        "--saveEngine=an artifact.plan",
    ]


def test_polygraphy_takes_its_command_lines(commands: dict[str, list[str]], tmp_path: Path) -> None:
    """As they are but for TensorRT, which isn't here: ONNX Runtime is compared with itself."""
    pytest.importorskip("polygraphy", reason="pip install polygraphy")
    polygraphy = "import sys; from polygraphy.tools import main; sys.exit(main())"
    run = [word for word in commands["polygraphy"][1:] if word not in ("--trt", "--strongly-typed")]
    for words in (commands["python"][1:], ["-c", polygraphy, *run, "--onnxrt"]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout and "(3, 32, 32, 3)" in done.stdout


def test_command_lines_are_for_tensorrt(small_model: Path, tmp_path: Path) -> None:
    made = package.export(small_model, "onnxruntime", "fp32", tmp_path / "artifact")
    assert fails(2, "inspect", made.path, "--commands")[1].startswith("there are none for onnxruntime")
