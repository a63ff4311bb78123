"""The session contract on a real GPU, with whatever NVIDIA runtime is installed: ``pytest -m gpu``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vitedge
from tests.runtimes.nvidia_contract import Place, SessionContract
from vitedge import runtimes
from vitedge.building import choices, engines
from vitedge.device import hardware
from vitedge.formats.artifact import Artifact
from vitedge.formats.result import Check
from vitedge.graph.surgery import load
from vitedge.runtimes._nvidia.driver import Cuda
from vitedge.runtimes.interpreter import run_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hardware.gpus(), reason="there is no NVIDIA GPU here"),
]
TARGETS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def exported(request: pytest.FixtureRequest, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if runtimes.installed(request.param) is None:
        pytest.skip(f"{request.param} isn't installed")
    out = tmp_path_factory.mktemp(request.param) / "artifact"
    return vitedge.export(small_model, TARGETS[request.param], "fp16", out)


@pytest.fixture
def place(exported: Artifact, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    artifact = Artifact.open(shutil.copytree(exported.path, tmp_path / "artifact"))
    graph = load(small_model / "model.onnx")
    cuda = Cuda("test", "tensorrt")

    def used() -> int:
        free, total = cuda.names.cudaMemGetInfo()[1:]
        return int(total - free)

    return Place(artifact, lambda images: run_graph(graph, images), 0.01, used)


class TestOnTheGpu(SessionContract):
    pass


def test_the_engine_was_built_at_export_and_everything_verifies(exported: Artifact) -> None:
    assert exported.manifest.golden.executed_by.startswith(exported.manifest.target.runtime)
    checks: list[Check] = vitedge.verify(exported)
    assert [check for check in checks if check.ok is not True] == []


def test_explain(exported: Artifact) -> None:
    found, _ = engines.explain([exported])
    (one,) = found.values()
    assert one.timed and one.layers > 0 and one.sentences


def test_bench(exported: Artifact) -> None:
    from vitedge.benchmarking.bench import BenchConfig

    (row,) = vitedge.bench([exported], BenchConfig(duration_s=1.0, warmup_s=0.2)).rows
    assert row.latency is not None and len(row.latency.samples.compute_ns) == len(row.latency.samples.latency_ns)


def test_autotune(exported: Artifact, small_model: Path, small_data: Path, tmp_path: Path) -> None:
    other = vitedge.export(small_model, exported.manifest.target.name, "fp32", tmp_path / "fp32")
    timed = choices.autotune([exported, other], out=tmp_path / "best", duration_s=0.5, data=str(small_data))
    (chosen,) = (one for one in timed if one.chosen)
    assert Artifact.open(tmp_path / "best").manifest.precision == chosen.precision
