"""OpenVINO: what its lowering writes, what it really executes, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import helper, numpy_helper

from tests.contract import artifacts
from tests.contract.portable import relative
from tests.graph.vits import MEAN, STD, random_arrays, tiny
from vitedge.errors import ArtifactError, UsageError, VitedgeError
from vitedge.formats.architecture import ConvStem
from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, Artifact
from vitedge.formats.target import Candidate, Target, load_target
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import linear_layers
from vitedge.installation import install_command
from vitedge.quantization.integers import PAIR
from vitedge.runtimes.base import Lowered, OpenOptions
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.openvino import bfloat16, lowering, preflight
from vitedge.runtimes.openvino import detect as facts
from vitedge.runtimes.openvino.session import _effective, _expect_known, _reason, open_backend, read_contract
from vitedge.runtimes.session import open_session

pytest.importorskip("openvino", reason="OpenVINO isn't installed")

TARGET = load_target("openvino")
INT8, FLOAT = TARGET.candidates("int8")[0], TARGET.candidates("fp32")[0]
ROOT = Path(__file__).resolve().parents[2]


def weights_of(lowered: Lowered) -> list[np.ndarray]:
    assert lowered.interpretable is not None
    tensors = lowered.interpretable.graph.initializer
    return [numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]


@pytest.fixture(scope="module")
def float_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.make(tmp_path_factory.mktemp("openvino") / "float", TARGET, FLOAT)


@pytest.mark.parametrize("candidate", [FLOAT, INT8], ids=["float", "int8"])
def test_equal_requests_give_equal_bytes(candidate: Candidate) -> None:
    first = artifacts.lower(artifacts.request(TARGET, candidate))
    artifacts.lower(artifacts.request(TARGET, FLOAT, batch=2))  # OpenVINO counts through what it reads
    assert artifacts.lower(artifacts.request(TARGET, candidate)).files == first.files


def test_the_files_hold_float32_and_the_contract(float_artifact: Artifact) -> None:
    weights = sum(np.prod(t.dims) for t in artifacts.small_graph().graph.initializer if t.data_type == 1)
    assert (float_artifact.path / "model.bin").stat().st_size >= 4 * weights  # not compressed to float16
    copy = read_contract(float_artifact)
    assert copy is not None and '"size":[32,48]' in copy["vitedge.preprocessing"]
    assert "class 6" in copy["vitedge.classes"] and copy["vitedge.schema_version"] == "1"


@pytest.mark.parametrize(
    ("isa", "wide"), [("any", False), ("avx2", False), ("avx512_vnni", True), ("avx_vnni", True), ("dotprod", True)]
)
def test_neighbouring_weights_saturate_nowhere(isa: str, wide: bool) -> None:
    lowered = artifacts.lower(artifacts.request(replace(TARGET, isa=isa), INT8))
    inputs_first = (weight.swapaxes(0, 1) if weight.ndim == 4 else weight for weight in weights_of(lowered))
    matrices = [weight.astype(int).reshape(len(weight), -1) for weight in inputs_first]
    assert max(np.abs(matrix).max() for matrix in matrices) > 100
    largest = max(np.abs(matrix[0::2] + matrix[1::2]).max() for matrix in matrices)
    assert largest > PAIR if wide else largest <= PAIR
    planned = {layer.name: layer for layer in lowered.layers}
    assert planned["blocks.0.attn.qkv"].precision == "int8" and planned["blocks.0.attn.scores"].precision == "fp32"
    first = planned["patch_embed.stem.0.conv"]
    assert first.precision == "fp32" and first.reason.startswith("its error would be in every block")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="INT8 convolutions are OpenVINO's on x86 alone")
@pytest.mark.parametrize("variant", ["convs-int8", "linears-convs-int8", "pointwise-int8"])
def test_convolutions_run_in_int8_but_the_first(variant: str, tmp_path: Path) -> None:
    artifact = artifacts.make(tmp_path / "artifact", TARGET, Candidate(precision="int8", variant=variant))
    planned = {layer.name: layer for layer in artifact.manifest.layers}
    assert planned["patch_embed.stem.0.conv"].precision == "fp32" and planned["patch_embed.stem.0.conv"].reason
    assert planned["patch_embed.stem.1.conv"].precision == "int8"
    assert planned["patch_embed.proj"].precision == "int8"
    assert planned["head"].precision == ("fp32" if variant == "convs-int8" else "int8")
    with open_session(artifact) as session:
        types = {node.name: node.type for node in session.executed()}
    assert {name: types[name] for name in planned} == {name: layer.precision for name, layer in planned.items()}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="INT8 convolutions are OpenVINO's on x86 alone")
def test_with_bfloat16_the_first_convolution_runs_in_int8_too(tmp_path: Path) -> None:
    """It reads the picture's own bytes, whose quantization OpenVINO takes away where the scale is 1."""
    config = replace(artifacts.CONFIG, stem=ConvStem(channels=(16, 32), strides=(2, 4), first_kernel=2))
    variant = Candidate(precision="int8", variant="pointwise-int8-rest-bf16")
    wish = artifacts.request(TARGET, variant, config=config)
    artifact = artifacts.write(tmp_path / "artifact", wish, lowered := artifacts.lower(wish), config)
    with open_session(artifact, OpenOptions(options={"INFERENCE_PRECISION_HINT": "f32"})) as session:
        types = {node.name: node.type for node in session.executed()}
    assert types["patch_embed.stem.0.conv"] == "int8"
    assert lowered.interpretable is not None
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in lowered.interpretable.graph.initializer}
    scale = tensors["patch_embed.stem.0.conv.input.scale"]
    every = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(np.rint(every / scale), every)


@pytest.mark.parametrize("candidate", [FLOAT, INT8], ids=["float", "int8"])
def test_a_gelu_behind_a_max_pool_stays_there(candidate: Candidate, tmp_path: Path) -> None:
    """OpenVINO took it into the convolution before the MaxPool, and every logit was another one."""
    stem = ConvStem(channels=(16, 32, 32), strides=(1, 2, 4), reduction="max", first_kernel=2)
    config = replace(artifacts.CONFIG, stem=stem)
    request = artifacts.request(TARGET, candidate, config=config)
    lowered = artifacts.lower(request)
    artifact = artifacts.write(tmp_path / "artifact", request, lowered, config)
    assert lowered.interpretable is not None
    expected = run_graph(lowered.interpretable, artifact.array(GOLDEN_INPUTS))
    differences = np.abs(artifact.array(GOLDEN_LOGITS) - expected)
    assert np.median(differences) < 1e-5 * np.abs(expected).max(), "an integer rounded otherwise moves few logits"
    with open_session(artifact) as session:
        types = {node.name: node.type for node in session.executed()}
    planned = {layer.name: layer.precision for layer in lowered.layers}
    assert {name: types[name] for name in planned} == planned


def test_a_form_that_finds_nothing_to_quantize() -> None:
    wish = artifacts.request(TARGET, Candidate(precision="int8", variant="convs-int8"))
    graph = author_vit(tiny(), random_arrays(tiny()), mean=MEAN, std=STD)
    with pytest.raises(UsageError, match="no layer for it to quantize"):
        artifacts.lower(dataclasses.replace(wish, graph=graph))


def test_the_plan_counts_every_multiplication() -> None:
    lowered = artifacts.lower(artifacts.request(TARGET, FLOAT))
    assert sum(layer.macs for layer in lowered.layers) == artifacts.CONFIG.macs()


def test_seven_bit_products_are_exact_on_this_machine() -> None:
    """u8 by s7 at their extremes and at random, against integers in numpy: no 16-bit sum saturates."""
    core, random = facts.core(), np.random.default_rng(0)
    for weights, levels in (
        (np.full((96, 16), 63), np.full((1, 5, 96), 255)),
        (np.full((96, 16), -63), np.full((1, 5, 96), 255)),
        (random.integers(-63, 64, (96, 16)), random.integers(0, 256, (1, 5, 96))),
    ):
        model, scale, zero = _product(weights.astype(np.int8)), np.float32(0.02), 37
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled({0: ((levels - zero) * scale).astype(np.float32)})[0]
        expected = ((levels - zero) @ weights.astype(np.int64)) * float(scale) * 0.5
        assert relative(found, expected) < 1e-6
        assert types_of(compiled, "y") <= {"u8", "i8"}


def types_of(compiled: Any, layer: str) -> set[str]:
    """What the executed nodes computed in that a layer became, whatever OpenVINO calls them; there is one at least."""
    types = set()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        names = [name.split("/")[0] for name in str(facts["originalLayersNames"].value).split(",")]
        if layer in names and str(facts["layerType"].value) not in ("Input", "Output", "Const"):
            types.add(str(facts["runtimePrecision"].value))
    assert types, f"nothing was executed of {layer}"
    return types


def _product(weights: np.ndarray) -> onnx.ModelProto:
    """One quantized linear: input scale 0.02, zero point 37, weight scale 0.5."""
    constants = {
        "s": np.float32(0.02), "z": np.uint8(37), "w": weights,
        "ws": np.full(weights.shape[1], 0.5, np.float32), "wz": np.zeros(weights.shape[1], np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="linear"),
    ]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 5, weights.shape[0]])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5, weights.shape[1]])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("candidate", [FLOAT, INT8], ids=["float", "int8"])
def test_planned_layers_are_found_whatever_the_graph_calls_its_nodes(candidate: Candidate, tmp_path: Path) -> None:
    wish = artifacts.request(TARGET, candidate)
    graph = onnx.ModelProto()
    graph.CopyFrom(wish.graph)
    for number, node in enumerate(graph.graph.node):
        node.name = f"/model/blocks.{number}/{node.op_type}" if number % 2 else f"{node.op_type}_{number}"
    for tensor in graph.graph.initializer:  # a constant may have a node's name
        for node in graph.graph.node:
            if tensor.name in node.input and node.op_type == "Add":
                node.input[:] = [node.name if name == tensor.name else name for name in node.input]
                tensor.name = node.name
    renamed = dataclasses.replace(wish, graph=graph)
    artifact = artifacts.write(tmp_path / "artifact", renamed, artifacts.lower(renamed))
    with open_session(artifact) as session:
        types = {node.name: node.type for node in session.executed()}
        for layer in artifact.manifest.layers:
            assert types[layer.name] == layer.precision
        assert [node.name for node in session.executed()].count(linear_layers(graph)[-1].name) == 1


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="the nearest is 'linears-int8'"):
        artifacts.lower(artifacts.request(TARGET, Candidate(precision="fp32", variant="linear-int8")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (OpenOptions(device="GPU.7"), ["OpenVINO finds no device 'GPU.7' here; it finds", "CPU", "--device"]),
        (OpenOptions(device="AUTO"), ["finds no device 'AUTO'"]),
        (OpenOptions(options={"NUM_STREAM": 1}), ["has no option 'NUM_STREAM'", "correct the option"]),
        (OpenOptions(options={"PERFORMANCE_HINT": "FAST"}), ["CPU refuses an option: ", "correct the option"]),
    ],
    ids=["device", "virtual device", "option", "value"],
)
def test_wishes_are_refused_not_replaced(float_artifact: Artifact, options: OpenOptions, said: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        open_session(float_artifact, options)
    assert all(words in str(refused.value) for words in said), refused.value


def test_more_threads_than_there_are_run_or_are_refused(float_artifact: Artifact) -> None:
    """OpenVINO may lower the number; then the session isn't what was asked for."""
    told = ""
    try:
        with open_session(float_artifact, OpenOptions(threads=100_000)) as session:
            told = f"{session.info['threads']} of {session.info['INFERENCE_NUM_THREADS']}"
    except UsageError as error:
        told = error.reason
    refused = r"INFERENCE_NUM_THREADS was to be 100000; CPU of this machine makes it \d+"
    assert re.fullmatch(rf"100000 of 100000|{refused}|CPU refuses an option: .*", told)


class StandIn:
    """A device, and a model compiled for it, with these properties."""

    def __init__(self, **properties: object) -> None:
        self.properties: dict[str, object] = {"SUPPORTED_PROPERTIES": list(properties), **properties}

    def get_property(self, *names: str) -> object:
        return self.properties[names[-1]]


def test_an_option_that_the_device_hasnt_names_the_nearest() -> None:
    _expect_known("CPU", {"NUM_STREAMS": 2}, "open it")
    with pytest.raises(UsageError, match="CPU has no option 'NUM_STREAM'; the nearest is 'NUM_STREAMS'"):
        _expect_known("CPU", {"NUM_STREAM": 1}, "open it")


def test_an_option_that_the_device_replaces_is_refused() -> None:
    compiled, action = StandIn(INFERENCE_NUM_THREADS=8, ENABLE_CPU_PINNING=False), "open it"
    assert _effective(compiled, {"INFERENCE_NUM_THREADS": 8, "UNREADABLE": 1}, "CPU", action) == {
        "INFERENCE_NUM_THREADS": 8
    }
    with pytest.raises(UsageError) as refused:
        _effective(compiled, {"INFERENCE_NUM_THREADS": 100_000}, "CPU", action)
    assert refused.value.reason == "INFERENCE_NUM_THREADS was to be 100000; CPU of this machine makes it 8"
    assert refused.value.hint == "open it on another machine, or with INFERENCE_NUM_THREADS 8"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Exception from src/inference/core.cpp:98:\nCheck 'x' failed at y:1:\n\nno such operator\n",
            "no such operator",
        ),
        ("some words that no version has said yet", "some words that no version has said yet"),
        ("Exception from src/core.cpp:1:\n", "Exception from src/core.cpp:1:"),
        ("", "RuntimeError"),
        (" \n\n", "RuntimeError"),
    ],
)
def test_what_openvino_says_in_one_line(text: str, reason: str) -> None:
    assert _reason(RuntimeError(text)) == reason


def test_bfloat16_runs_as_bfloat16_or_is_refused(float_artifact: Artifact) -> None:
    """With AVX-512 alone OpenVINO computes in bfloat16, too, though it doesn't name it among the CPU's capabilities."""
    capable = "BF16" in facts.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wish, refusal = OpenOptions(options={"INFERENCE_PRECISION_HINT": "bf16"}), ""
    try:
        with open_session(float_artifact, wish) as session:
            assert session.info["INFERENCE_PRECISION_HINT"] == "bf16"
            assert "bf16" in {node.type for node in session.executed()}
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert not capable
        assert re.search(r"INFERENCE_PRECISION_HINT was to be bf16|CPU refuses an option: ", refusal)


@pytest.mark.parametrize(("told", "behind"), [("int8", ""), ("fp32", "fp32"), ("bf16", "bf16")])
def test_a_fused_node_tells_the_type_of_its_first_layer(
    float_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, told: str, behind: str
) -> None:
    """OpenVINO names one type for all that it fused; int8 queries and keys say nothing of the values' product."""
    with open_session(float_artifact, OpenOptions(threads=1)) as session:
        backend = session._backend
        nodes = {"attention": (["blocks.0.attn.scores", "blocks.0.attn.context"], "Subgraph", told)}
        monkeypatch.setattr(type(backend), "_nodes", lambda self, compiled: nodes)
        assert [(node.name.rsplit(".", 1)[1], node.type) for node in backend.executed()] == [
            ("scores", told),
            ("context", behind),
        ]


def test_the_bfloat16_form_asks_for_it() -> None:
    lowered = artifacts.lower(artifacts.request(TARGET, Candidate(precision="bf16", variant="bf16")))
    assert lowered.runtime_options["INFERENCE_PRECISION_HINT"] == "bf16"
    assert {layer.precision for layer in lowered.layers} == {"bf16"}


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=8))
def test_rounding_to_bfloat16(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    found = bfloat16.nearest_bfloat16(exact)
    assert not (found.view(np.uint32) & 0xFFFF).any()  # 8 bits of mantissa
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-8 + 1e-38).all()
    above = (found.view(np.uint32) + 0x10000).view(np.float32)
    assert (np.abs(found - exact) <= np.abs(above - exact)).all()


def test_bfloat16_is_interpreted_with_its_roundings() -> None:
    """Where no processor here has bfloat16, the deviation that's recorded must not be float32's."""
    pytest.importorskip("onnxruntime")
    from vitedge.runtimes.interpreter import run_graph

    lowered = artifacts.lower(artifacts.request(TARGET, Candidate(precision="bf16", variant="bf16")))
    assert lowered.interpretable is not None
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    deviation = relative(run_graph(lowered.interpretable, frames), artifacts.reference(frames))
    assert 5e-4 < deviation < 5e-2


@pytest.mark.parametrize("variant", ["linears-convs-int8", "pointwise-int8"])
def test_what_is_not_quantized_runs_in_bfloat16_where_that_is_asked_for(variant: str) -> None:
    pytest.importorskip("onnxruntime")
    from vitedge.runtimes.interpreter import run_graph

    exact = artifacts.lower(artifacts.request(TARGET, Candidate(precision="int8", variant=variant)))
    lowered = artifacts.lower(artifacts.request(TARGET, Candidate(precision="int8", variant=f"{variant}-rest-bf16")))
    assert lowered.runtime_options["INFERENCE_PRECISION_HINT"] == "bf16"
    planned = {layer.name: layer.precision for layer in lowered.layers}
    assert planned["blocks.0.attn.qkv"] == "int8" and planned["blocks.0.attn.scores"] == "bf16"
    first = "patch_embed.stem.0.conv"
    assert planned[first] == "int8" and {layer.name: layer.precision for layer in exact.layers}[first] == "fp32"
    graphs = [each.interpretable for each in (lowered, exact)]
    ends = (".scale", ".weight.q")
    mine, others = ({t.name: t for t in graph.graph.initializer if t.name.endswith(ends)} for graph in graphs if graph)
    assert others.items() <= mine.items()
    assert mine.keys() - others.keys() == {f"{first}.{what}" for what in ("input.scale", "weight.scale", "weight.q")}
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    assert 1e-4 < relative(*(run_graph(graph, frames) for graph in graphs if graph)) < 5e-2


def test_options_of_the_target_win_and_are_read_back(tmp_path: Path) -> None:
    target: Target = replace(TARGET, options={"EXECUTION_MODE_HINT": "ACCURACY", "CPU_DENORMALS_OPTIMIZATION": True})
    artifact = artifacts.make(tmp_path / "artifact", target, FLOAT)
    with open_session(artifact) as session:
        assert session.info["EXECUTION_MODE_HINT"] == "ACCURACY" and session.info["CPU_DENORMALS_OPTIMIZATION"] is True
        assert session.info["INFERENCE_PRECISION_HINT"] == "f32" and session.info["ENABLE_CPU_PINNING"] is False


@pytest.mark.parametrize("content", [b"", b"<net", b"<net/>", b"\x00\xff" * 50, b'<net version="11"><layers/></net>'])
def test_a_graph_that_cannot_be_loaded(float_artifact: Artifact, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(content)
    (tmp_path / "model.bin").write_bytes((float_artifact.path / "model.bin").read_bytes())
    with pytest.raises(ArtifactError) as refused:
        open_backend(Artifact(tmp_path, float_artifact.manifest), OpenOptions())
    assert "can't load model.xml on CPU" in str(refused.value) and "\n\n" not in str(refused.value)


def test_a_graph_of_another_shape(float_artifact: Artifact) -> None:
    manifest = float_artifact.manifest
    for other, said in (
        (replace(manifest, batch=4), r"'image' is u8 \[1, 32, 48, 3\]; the manifest says u8 \[4, 32, 48, 3\]"),
        (replace(manifest, classes=manifest.classes[:3]), r"'logits' is f32 \[1, 7\]; the manifest says f32 \[1, 3\]"),
    ):
        with pytest.raises(ArtifactError, match=said):
            open_backend(Artifact(float_artifact.path, other), OpenOptions())


def test_a_damaged_contract_copy(float_artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net><rt_info/></net>")
    assert read_contract(Artifact(tmp_path, float_artifact.manifest)) is None
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(ArtifactError, match="isn't an OpenVINO IR"):
        read_contract(Artifact(tmp_path, float_artifact.manifest))


def test_preflight(float_artifact: Artifact) -> None:
    graph = (float_artifact.path / "model.xml").read_bytes()
    assert preflight.check(graph, TARGET) == []
    written = '<net version="{}"><layers><layer name="norm" type="MVN" version="{}"/></layers></net>'
    for version, opset, findings in (
        ("11", "opset6", []),
        ("10", "opset16", []),
        ("12", "opset6", ["IR version 12"]),
        ("11", "opset17", ["operator MVN of opset17 (norm)"]),
        ("11", "extension", ["operator MVN of extension (norm)"]),
    ):
        assert preflight.check(written.format(version, opset).encode(), TARGET) == findings
    newer = replace(TARGET, runtime_min="2026.1")
    assert preflight.check(written.format("11", "opset17").encode(), newer) == []


def test_a_signal_after_sessions_were_closed_reaches_its_handler(float_artifact: Artifact) -> None:
    """Closed in the order in which they were opened: OpenVINO's own clearing up then left no stack for the handler."""
    program = (
        "import os, signal, sys\n"
        "from vitedge.runtimes.session import open_session\n"
        "sessions = [open_session(sys.argv[1]) for _ in range(3)]\n"
        "for session in sessions: session.close()\n"
        "del session, sessions\n"
        "signal.signal(signal.SIGINT, lambda number, frame: print(signal.Signals(number).name))\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(float_artifact.path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "SIGINT\n")


def test_opening_prints_nothing_reports_nothing_and_needs_no_onnx(float_artifact: Artifact, tmp_path: Path) -> None:
    """OpenVINO's import would report its use over the network and leave an identifier in the home folder."""
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from vitedge.runtimes import installed; assert installed('openvino') and 'openvino' not in sys.modules\n"
        "from vitedge.runtimes.session import open_session\n"
        "session = open_session(sys.argv[1])\n"
        "session.run(session.preprocess(session.artifact.array('golden/inputs.npy')[0])[None])\n"
        "session.profile(session.artifact.array('golden/inputs.npy')[:1], 1); session.close()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(float_artifact.path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_facts() -> None:
    told = facts.describe()
    assert told["version"] == facts.installed()
    assert told["devices"]["CPU"]["name"] and all(
        isinstance(word, str) for word in told["devices"]["CPU"]["precisions"]
    )
    assert facts.runs_here("CPU") and not facts.runs_here("GPU.7")


def test_a_missing_package_names_its_extra(float_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "installed", lambda: None)
    with pytest.raises(VitedgeError, match="openvino") as refused:
        open_session(float_artifact)
    assert refused.value.exit_code == 8 and install_command("openvino") in str(refused.value)
    assert not facts.runs_here("CPU") and facts.describe() == {"version": None}


def test_forms_are_those_of_the_targets() -> None:
    for name in ("openvino", "openvino-arm", "intel-cpu", "intel-n100", "x86-server"):
        assert {candidate.variant for candidate in load_target(name).candidate} <= set(lowering.VARIANTS)
