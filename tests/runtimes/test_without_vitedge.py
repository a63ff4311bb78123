"""The programs of ``docs/without-vitedge.md``, taken from the page and run where their runtime runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitedge
from tests.conftest import ROOT
from tests.runtimes.nvidia_stand_in import CudaStandIn, TensorRTStandIn, plan
from vitedge import runtimes
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, Artifact

PAGE = (ROOT / "docs/without-vitedge.md").read_text()
PROGRAMS = dict(re.findall(r"<!-- program: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


def written(folder: Path, name: str) -> Path:
    file = folder / f"program{Path(name).suffix}"
    file.write_text(PROGRAMS[name])
    return file


def exported(small_model: Path, runtime: str, folder: Path) -> Artifact:
    if runtimes.installed(runtime) is None:
        pytest.skip(f"{runtime} isn't installed")
    return vitedge.export(small_model, runtime, "fp32", folder / "artifact")


def test_every_runtime_has_its_programs() -> None:
    """The C++ programs for ONNX Runtime and OpenVINO are in examples/cpp, which tests/examples runs."""
    assert sorted(PROGRAMS) == ["onnxruntime.py", "openvino.py", "tensorrt.cpp", "tensorrt.py"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_python(small_model: Path, tmp_path: Path, runtime: str) -> None:
    made = exported(small_model, runtime, tmp_path)
    logits = made.array(GOLDEN_LOGITS)
    picture = made.path / made.manifest.golden.pictures[0]
    done = subprocess.run(
        [sys.executable, written(tmp_path, f"{runtime}.py"), made.path, picture],
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    names = [label.name for label in made.manifest.classes]
    assert [name for name, _ in said] == [names[index] for index in np.argsort(-logits[0])[:5]]
    # Pillow may resize in another order than vitedge's contract: a pixel may differ by one
    np.testing.assert_allclose([float(value) for _, value in said], np.sort(logits[0])[::-1][:5], atol=0.05)


def test_tensorrt_against_the_stand_in(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows that the calls are in order, on memory of the right size, and that nothing is left."""
    made = vitedge.export(small_model, "tensorrt", "fp16", tmp_path / "artifact")
    frames = made.array(GOLDEN_INPUTS)
    engine = tmp_path / "model.plan"
    engine.write_bytes(plan(1, *frames.shape[1:3], len(made.manifest.classes)))
    cuda = CudaStandIn(pageable=True)
    monkeypatch.setitem(sys.modules, "cuda", type(sys)("cuda"))
    bindings = type(sys)("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", TensorRTStandIn(cuda))
    program = written(tmp_path, "tensorrt.py")
    monkeypatch.setattr(sys, "argv", [str(program), str(made.path), str(engine), str(made.path / GOLDEN_INPUTS)])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == f"{made.manifest.classes[0].name} {float(frames[0].sum(dtype=np.float32))}\n"
    assert cuda.alive == 0
