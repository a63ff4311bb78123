"""The demo where something is missing: it names the extra and finishes."""

from __future__ import annotations

import html
import importlib.util
from pathlib import Path

import pytest

from tests.cli.command import fails, vitedge
from vitedge.formats.result import read_result
from vitedge.installation import install_command


def test_it_finishes_without_openvino_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitedge.runtimes.openvino import detect

    monkeypatch.setattr(detect, "installed", lambda: None)
    out = tmp_path / "demo"
    done = vitedge("demo", "--out", out, "--duration", "0.3")
    assert done.code == 0, done.err
    assert install_command("openvino") in done.out
    assert "onnxruntime int8" in done.out and "tensorrt int8" in done.out
    assert f"Open {out / 'report.html'}" in done.out
    result = read_result(out)
    found = {(row.subject.target, row.subject.precision): row for row in result.rows}
    assert len(found) == 6
    assert found["openvino", "int8"].latency is None and "openvino" in found["openvino", "int8"].note
    assert found["onnxruntime", "int8"].latency is not None and found["onnxruntime", "int8"].accuracy is not None
    assert "portable: build on the device" in found["tensorrt", "fp16"].note
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        assert found["tensorrt", "int8"].parser_checks[0].ok, found["tensorrt", "int8"].parser_checks
    page = (out / "report.html").read_text()
    assert install_command("openvino") in html.unescape(page) and len(page) < 5_000_000
    assert fails(2, "demo", "--out", out)[1] == f"{out} already exists"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "safetensors", "jinja2", "matplotlib"])
def test_it_asks_for_its_packages_at_once(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else find_spec(name, *more)
    )
    _, reason, hint = fails(8, "demo", "--out", tmp_path / "demo")
    assert reason == f"the package '{package}' is not installed"
    assert hint == f"run: {install_command('demo')}"  # the extra that brings all of them, not one that leaves others
    assert not (tmp_path / "demo").exists()
