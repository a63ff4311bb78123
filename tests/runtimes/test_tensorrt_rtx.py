"""The parser check: TensorRT-RTX builds our graphs for GPUs that aren't here, and a bad graph costs a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

import vitedge
from tests.conftest import ROOT
from tests.graph.vits import tiny
from tests.runtimes.test_nvidia_session import artifact
from tests.runtimes.typed_vits import embedded, pictures, request, residual_network, trained_like
from vitedge import runtimes
from vitedge.core import files
from vitedge.errors import ArtifactError, NotInstalledError, UsageError
from vitedge.formats.architecture import BlockWidths, ConvStem
from vitedge.graph.surgery import to_bytes
from vitedge.installation import install_command
from vitedge.runtimes._nvidia import engine
from vitedge.runtimes._nvidia import parser_check as module
from vitedge.runtimes._nvidia.parser_check import parse_and_build
from vitedge.training.zoo import ZOO

pytestmark = pytest.mark.skipif(
    runtimes.installed("tensorrt_rtx") is None, reason='pip install "vitedge[tensorrt-rtx]" brings the parser check'
)

CONFIGS = {
    "plain": tiny(),
    "conv stem, distilled": tiny(stem=ConvStem(channels=(8,), strides=(8,)), distillation_token=True),
    "QK-norm, registers, average pooling": tiny(qk_norm=True, register_tokens=2, pool="avg", final_norm="fc_norm"),
}


def lowered(graph: object, config: object, precision: str) -> bytes:
    wish = request(graph, config, precision, images=pictures(config, 2))  # type: ignore[arg-type]
    result = runtimes.part("tensorrt", "lowering").lower(wish)
    assert runtimes.part("tensorrt", "preflight").check(result.files[result.graph], wish.target) == []
    return bytes(result.files[result.graph])


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "int8") for name in CONFIGS), ("plain", "fp32"), ("conv stem, distilled", "fp16")]
)
def test_small_graphs_build(name: str, precision: str) -> None:
    report = parse_and_build(lowered(trained_like(CONFIGS[name]), CONFIGS[name], precision), ["8.6"])
    assert report.errors == {} and report.engines["8.6"] > 0 and report.passed


#: Turing, Ampere, Ada and Blackwell: every compute capability that TensorRT-RTX knows.
SMS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def capable(precision: str) -> tuple[str, ...]:
    """Every compute capability that has the precision's types."""
    oldest = {"fp8": 8.9, "fp32": 8.0}.get(precision, 0.0)
    return tuple(sm for sm in SMS if float(sm) >= oldest)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_the_embedded_model_builds_for_every_compute_capability(precision: str) -> None:
    graph, config = embedded()
    report = parse_and_build(lowered(graph, config, precision), capable(precision))
    assert report.errors == {} and tuple(report.engines) == capable(precision)
    assert report.version == runtimes.installed("tensorrt_rtx")


@pytest.mark.parametrize(
    "precision", ["int8", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fp16", "fp8"))]
)
def test_widths_of_each_block_build_for_every_compute_capability(precision: str) -> None:
    narrow = BlockWidths(heads=3, query_key=24, value=40, mlp_hidden=200)
    gone = BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=72, tokens=11)
    config = tiny(embed_dim=64, num_heads=4, depth=3, blocks=(narrow, gone, replace(narrow, heads=1, mlp_hidden=0)))
    report = parse_and_build(lowered(trained_like(config), config, precision), capable(precision))
    assert report.errors == {} and tuple(report.engines) == capable(precision)


def test_residual_branches_in_int8_build() -> None:
    report = parse_and_build(lowered(residual_network(), tiny(), "int8"), SMS)
    assert report.errors == {} and tuple(report.engines) == SMS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_passes_in_every_variant(name: str, tmp_path: Path) -> None:
    """Tables of operators, where Q/DQ stand, and a build for every compute capability."""
    script, out = ROOT / "benchmarks" / "tensorrt_matrix.py", tmp_path / "matrix.json"
    subprocess.run([sys.executable, str(script), name, "--out", str(out)], check=True)
    rows = json.loads(out.read_text())["rows"]
    assert {kind for row in rows for kind in row["macs"]} == {"fp16", "fp32", "fp8", "int8"}
    for row in rows:
        precision = next((kind for kind in ("fp8", "fp32") if kind in row["macs"]), "")
        assert row["unfused"] == {} and (row["note"] or tuple(row["built"]) == capable(precision))


def test_fp8_is_refused_where_the_gpu_has_none() -> None:
    report = parse_and_build(lowered(trained_like(tiny()), tiny(), "fp8"), ["8.6", "8.9"])
    assert list(report.engines) == ["8.9"] and list(report.errors) == ["8.6"]
    assert re.search(r"TensorRT-RTX \S+ can't build it: \S", report.errors["8.6"])


def test_a_capability_it_doesnt_know_is_an_error_of_its_own() -> None:
    report = parse_and_build(lowered(trained_like(tiny()), tiny(), "fp16"), ["8.6", "8.7"])
    assert list(report.engines) == ["8.6"] and not report.passed
    assert report.errors["8.7"].startswith("compute capability 8.7 isn't among 7.5, 8.0, 8.6, 8.9, 12.0")


def small(node: object, kind: int, constants: dict[str, object]) -> bytes:
    values = [helper.make_tensor_value_info(name, kind, (2, 4)) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    nodes = [node, helper.make_node("Add", ["x", "f"], ["y"], name="add")] if constants else [node]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], tensors)
    return to_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def test_parser_errors_name_node_and_operator() -> None:
    transpose = helper.make_node("Transpose", ["x"], ["y"], name="turn", perm=[1, 0])
    text = parse_and_build(small(transpose, TensorProto.UINT8, {}), ["8.6"]).errors["8.6"]
    assert re.search(r"can't parse the graph: node 'turn' \(Transpose\): \S", text)
    bias = helper.make_node("DequantizeLinear", ["b", "s"], ["f"], name="bias.dq")
    constants = {"b": np.arange(4, dtype=np.int32), "s": np.float32(0.1)}
    text = parse_and_build(small(bias, TensorProto.FLOAT, constants), ["8.6"]).errors["8.6"]
    assert re.search(r"can't parse the graph: node 'bias\.dq' \(DequantizeLinear\): \S", text)


class ParserError:
    """As TensorRT's parser reports one."""

    def __init__(self, node: str, operator: str, text: str) -> None:
        self._node, self._operator, self._text = node, operator, text

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ParserError("turn", "Transpose", "no\n UInt8 [checkMacros.cpp::12] no driver"),
            "node 'turn' (Transpose): no UInt8",
        ),
        (
            ParserError("turn", "Transpose", "words of a later version"),
            "node 'turn' (Transpose): words of a later version",
        ),
        (ParserError("", "", "it is no graph"), "it is no graph"),
    ],
)
def test_a_parsers_error_in_one_line(error: ParserError, said: str) -> None:
    assert engine._parser_error(error) == said


def test_bytes_that_are_no_graph() -> None:
    report = parse_and_build(b"no graph at all", ["8.6"])
    assert report.engines == {} and report.errors["8.6"]


def _crash_on_ada(graph: bytes, sms: tuple[str, ...]) -> dict[str, int | str]:
    if "8.9" in sms:
        os.kill(os.getpid(), signal.SIGSEGV)
    return dict.fromkeys(sms, 1)


def test_a_crash_of_the_builder_is_an_error_when_engines_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "build", _crash)
    with pytest.raises(ArtifactError, match=r"with TensorRT-RTX 1\.7: the process was killed by SIGSEGV"):
        engine.build_isolated("tensorrt_rtx", "1.7", b"", engine.BuildOptions(sms=("8.6",)), action="build it")


def _crash(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_progress_of_a_real_build(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    graph = lowered(trained_like(tiny()), tiny(), "fp16")
    options = engine.BuildOptions(sms=("8.9",))
    built = engine.build_isolated(
        "tensorrt_rtx", "any", graph, options, action="build it", progress=lambda *step: told.append(step)
    )
    assert built.plan and built.seconds > 0 and built.timing_cache == b""
    shares = [done for _, done, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1000 and len(set(shares)) > 2


def test_engines_are_built_ahead_of_time_and_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    made = artifact(tmp_path, "tensorrt-rtx")
    rows = vitedge.build(made, sms=["8.6", "8.9"], out=tmp_path / "artifact.engines")
    assert [(row["sm"], row["built"]) for row in rows] == [("8.6", True), ("8.9", True)]
    listed = json.loads((tmp_path / "artifact.engines/engines.json").read_bytes())["engines"]
    assert [(one["package"], one["sm"], one["gpu"]) for one in listed] == [
        ("tensorrt_rtx", "8.6", None),
        ("tensorrt_rtx", "8.9", None),
    ]
    for one in listed:
        assert files.sha256_file(tmp_path / "artifact.engines" / one["file"]) == one["engine"]
    assert [row["built"] for row in vitedge.build(made, sms=["8.9"])] == [False]
    with pytest.raises(UsageError, match=r"compute capability 8\.7 isn't among 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        vitedge.build(made, sms=["8.7"])


def _sleep(graph: bytes, sms: tuple[str, ...]) -> dict[str, int | str]:
    import time

    time.sleep(60)
    return {}


def test_a_crashing_builder_is_an_error_and_the_others_are_still_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sizes", _crash_on_ada)
    report = parse_and_build(b"", ["8.6", "8.9", "12.0"])
    assert report.engines == {"8.6": 1, "12.0": 1}
    assert report.errors == {"8.9": "the process was killed by SIGSEGV"}


def test_a_builder_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sizes", _sleep)
    report = parse_and_build(b"", ["8.6"], timeout_s=1)
    assert report.errors == {"8.6": "it took longer than 1 seconds and was stopped"}


def test_int8_isnt_a_variant_of_this_runtime() -> None:
    wish = request(trained_like(tiny()), tiny(), "int8", images=pictures(tiny(), 2))
    with pytest.raises(UsageError, match="TensorRT-RTX has no kernel variant of this name"):
        runtimes.part("tensorrt_rtx", "lowering").lower(wish)


def test_the_same_graph_as_tensorrts_otherwise() -> None:
    graph = trained_like(tiny())
    files = [
        runtimes.part(runtime, "lowering").lower(request(graph, tiny(), "fp16", target)).files
        for runtime, target in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx"))
    ]
    assert files[0] == files[1]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda _: None)
    with pytest.raises(NotInstalledError, match=re.escape(install_command("tensorrt-rtx"))):
        parse_and_build(b"")
