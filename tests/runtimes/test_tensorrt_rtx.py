"""The referee: TensorRT-RTX builds our graphs for GPUs that aren't here, and a bad graph costs a sentence."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph.vits import tiny
from tests.runtimes.typed_vits import VIT_TI, embedded, pictures, request, trained_like
from vitedge import runtimes
from vitedge.architecture import ConvStem
from vitedge.errors import NotInstalledError, UsageError
from vitedge.graph.surgery import to_bytes
from vitedge.runtimes.tensorrt_rtx import referee as module
from vitedge.runtimes.tensorrt_rtx.referee import SMS, referee

pytestmark = pytest.mark.skipif(
    runtimes.installed("tensorrt_rtx") is None, reason='pip install "vitedge[tensorrt-rtx]" brings the referee'
)

CONFIGS = {
    "plain": tiny(),
    "conv stem, distilled": tiny(stem=ConvStem(channels=(8,), strides=(8,)), distillation_token=True),
    "QK-norm, registers, average pooling": tiny(qk_norm=True, register_tokens=2, pool="avg", final_norm="fc_norm"),
}


def placed(graph: object, config: object, precision: str) -> bytes:
    wish = request(graph, config, precision, images=pictures(config, 2))  # type: ignore[arg-type]
    result = runtimes.part("tensorrt", "placement").place(wish)
    assert runtimes.part("tensorrt", "preflight").check(result.files[result.graph], wish.target) == []
    return bytes(result.files[result.graph])


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "int8") for name in CONFIGS), ("plain", "fp32"), ("conv stem, distilled", "fp16")]
)
def test_small_graphs_build(name: str, precision: str) -> None:
    report = referee(placed(trained_like(CONFIGS[name]), CONFIGS[name], precision), ["8.6"])
    assert report.errors == {} and report.engines["8.6"] > 10_000 and report.passed


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_embedded_model_builds_for_ampere_ada_and_blackwell(precision: str) -> None:
    graph, config = embedded()
    report = referee(placed(graph, config, precision))
    assert report.errors == {} and set(report.engines) == set(SMS) == {"8.6", "8.9", "12.0"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_vit_ti_builds_for_ampere_ada_and_blackwell(precision: str) -> None:
    report = referee(placed(trained_like(VIT_TI), VIT_TI, precision))
    assert report.errors == {} and set(report.engines) == set(SMS)
    assert report.version == runtimes.installed("tensorrt_rtx")


def test_a_capability_it_doesnt_know_is_an_error_of_its_own() -> None:
    report = referee(placed(trained_like(tiny()), tiny(), "fp16"), ["8.6", "8.7"])
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
    text = referee(small(transpose, TensorProto.UINT8, {}), ["8.6"]).errors["8.6"]
    assert "can't parse the graph: node 'turn' (Transpose): " in text and "UInt8" in text and "checkMacros" not in text
    bias = helper.make_node("DequantizeLinear", ["b", "s"], ["f"], name="bias.dq")
    constants = {"b": np.arange(4, dtype=np.int32), "s": np.float32(0.1)}
    text = referee(small(bias, TensorProto.FLOAT, constants), ["8.6"]).errors["8.6"]
    assert "node 'bias.dq' (DequantizeLinear): " in text and "Int32" in text


def test_bytes_that_are_no_graph() -> None:
    report = referee(b"no graph at all", ["8.6"])
    assert report.engines == {} and report.errors["8.6"]


def _crash_on_ada(graph: bytes, sms: tuple[str, ...]) -> dict[str, int | str]:
    if "8.9" in sms:
        os.kill(os.getpid(), signal.SIGSEGV)
    return dict.fromkeys(sms, 1)


def _sleep(graph: bytes, sms: tuple[str, ...]) -> dict[str, int | str]:
    import time

    time.sleep(60)
    return {}


def test_a_crashing_builder_is_an_error_and_the_others_are_still_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sizes", _crash_on_ada)
    report = referee(b"", SMS)
    assert report.engines == {"8.6": 1, "12.0": 1}
    assert report.errors == {"8.9": "the process was killed by SIGSEGV"}


def test_a_builder_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sizes", _sleep)
    report = referee(b"", ["8.6"], timeout_s=1)
    assert report.errors == {"8.6": "it took longer than 1 seconds and was stopped"}


def test_int8_isnt_a_form_of_this_runtime() -> None:
    wish = request(trained_like(tiny()), tiny(), "int8", images=pictures(tiny(), 2))
    with pytest.raises(UsageError, match="TensorRT-RTX has no form of this name"):
        runtimes.part("tensorrt_rtx", "placement").place(wish)


def test_the_same_graph_as_tensorrts_otherwise() -> None:
    graph = trained_like(tiny())
    files = [
        runtimes.part(runtime, "placement").place(request(graph, tiny(), "fp16", target)).files
        for runtime, target in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx"))
    ]
    assert files[0] == files[1]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: None)
    with pytest.raises(NotInstalledError, match=r'pip install "vitedge\[tensorrt-rtx\]"'):
        referee(b"")
