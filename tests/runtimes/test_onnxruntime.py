"""Lowering, preflight, options, errors and the interpreter of ONNX Runtime; the rest is the contract suite's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from tests.contract import artifacts
from vitedge.device.hardware import processor
from vitedge.errors import ArtifactError, ModelError, ResourceError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Candidate, load_target
from vitedge.graph.unused_tokens import without_unused_tokens
from vitedge.quantization.integers import PAIR
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.executed import unmet_layers
from vitedge.runtimes.interpreter import run_graph
from vitedge.runtimes.onnxruntime import detect, preflight, providers
from vitedge.runtimes.onnxruntime.lowering import VARIANTS, lower
from vitedge.runtimes.onnxruntime.session import _explained, open_backend
from vitedge.runtimes.session import Session, open_session

TARGET = load_target("onnxruntime")
INT8 = Candidate(precision="int8", variant="linears-int8")
FLOAT = Candidate(precision="fp32", variant="float")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.make(tmp_path_factory.mktemp("artifact") / "int8", TARGET, INT8)


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Iterator[Session]:
    with open_session(artifact, OpenOptions(threads=1)) as opened:
        yield opened


# --- lowering --------------------------------------------------------------------------------------------------------


def test_plan_of_the_int8_form(artifact: Artifact) -> None:
    layers = {layer.name: layer for layer in artifact.manifest.layers}
    assert layers["blocks.0.attn.qkv"].precision == layers["patch_embed.stem.1.conv"].precision == "int8"
    left = {"head": "one row", "patch_embed.stem.0.conv": "few channels", "patch_embed.proj": "in every block"}
    for name, word in left.items():
        assert layers[name].precision == "fp32" and word in layers[name].reason
    assert {layer.precision for layer in layers.values() if layer.kind == "attention"} == {"fp32"}
    total = sum(layer.macs for layer in layers.values())
    assert sum(layer.macs for layer in layers.values() if layer.precision == "int8") > 0.7 * total


def test_equal_requests_give_equal_bytes() -> None:
    first, second = (lower(artifacts.request(TARGET, INT8, 2)) for _ in range(2))
    assert first.files == second.files and first.layers == second.layers


@pytest.mark.parametrize(
    ("isa", "wide"),
    [("any", False), ("avx2", False), ("avx_vnni", True), ("avx512_vnni", True), ("dotprod", True), ("i8mm", True)],
)
def test_weights_are_what_the_instruction_set_multiplies_exactly(isa: str, wide: bool) -> None:
    lowered = lower(artifacts.request(replace(TARGET, isa=isa), INT8))
    graph = onnx.load_from_string(lowered.files[lowered.graph]).graph
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.INT8]
    matrices = [weight.astype(int) for weight in weights if weight.ndim == 2]
    assert max(int(np.abs(matrix).max()) for matrix in matrices) > 100
    largest = max(int(np.abs(matrix[0::2] + matrix[1::2]).max()) for matrix in matrices)
    assert largest > PAIR if wide else largest <= PAIR


def test_float_is_the_canonical_graph_without_unused_tokens() -> None:
    lowered = lower(artifacts.request(TARGET, FLOAT, 3))
    model = onnx.load_from_string(lowered.files[lowered.graph])
    wanted = without_unused_tokens(artifacts.small_graph())
    assert [node.name for node in model.graph.node] == [node.name for node in wanted.graph.node]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert {layer.precision for layer in lowered.layers} == {"fp32"}


def test_unknown_form() -> None:
    with pytest.raises(UsageError, match=r"no kernel variant of this name; the nearest is 'linears-int8'"):
        lower(artifacts.request(TARGET, replace(INT8, variant="linear-int8")))
    assert list(VARIANTS)[:3] == ["float", "float-attention", "linears-int8"]


# --- preflight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", [FLOAT, INT8], ids=["float", "int8"])
def test_our_graphs_pass(candidate: Candidate) -> None:
    lowered = lower(artifacts.request(TARGET, candidate))
    assert preflight.check(lowered.files[lowered.graph], TARGET) == []
    old = preflight.check(lowered.files[lowered.graph], replace(TARGET, runtime_min="1.16"))
    attention = ["operator MultiHeadAttention of com.microsoft"] if candidate is INT8 else []
    assert old == ["opset 20 (it takes 19)", *attention]


def test_what_it_cannot_take_is_listed() -> None:
    model = artifacts.small_graph()
    model.ir_version = 13
    model.graph.node[0].op_type = "Teleport"
    model.graph.node[1].domain = "org.example"
    half = numpy_helper.from_array(np.zeros(2, np.float16), "half")
    model.graph.initializer.append(half)
    findings = preflight.check(model.SerializeToString(), TARGET)
    assert findings[0] == "IR version 13 (it takes 11)"
    assert "operator Teleport of ai.onnx" in findings
    assert f"operator {model.graph.node[1].op_type} of org.example" in findings
    assert "float16 weights (half): there are no such kernels for CPUs" in findings


def operators_of(artifact: Artifact) -> list[str]:
    """Those of the file, as they were lowered: what the library makes of them when it loads them is its own matter."""
    return [node.op_type for node in onnx.load(artifact.graph_path).graph.node]


# --- session ---------------------------------------------------------------------------------------------------------


def test_the_executed_graph_is_the_plan(artifact: Artifact, session: Session) -> None:
    executed = session.executed()
    assert unmet_layers(artifact.manifest.layers, executed) == []
    types = {name: type_ for name, _, type_ in executed}
    assert types["blocks.0.attn.qkv"] == types["patch_embed.stem.1.conv"] == "int8"
    assert types["blocks.0.attn.scores"] == "fp32"
    written = operators_of(artifact)
    assert written.count("QAttention") == artifacts.CONFIG.depth - 1, "the last block's reads one row"
    assert "MatMulIntegerToFloat" in written


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_as_planned(variant: str, tmp_path: Path) -> None:
    """The executed graph has the planned layers in integers, and computes what its standard graph says."""
    candidate = replace(INT8 if variant.endswith("int8") else FLOAT, variant=variant)
    lowered = lower(artifacts.request(TARGET, candidate))
    assert preflight.check(lowered.files[lowered.graph], TARGET) == []
    made = artifacts.make(tmp_path / variant, TARGET, candidate)
    planned = [layer.name for layer in made.manifest.layers if layer.precision == "int8"]
    assert bool(planned) == variant.endswith("int8")
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    images[1:] = images[1:] // 8 + 112  # little contrast: no range of their own would be that of the first
    with open_session(made, OpenOptions(threads=1)) as opened:
        assert unmet_layers(made.manifest.layers, opened.executed()) == []
        found = np.stack(list(opened.map_batches(images)))
    assert lowered.interpretable is not None
    expected = run_graph(lowered.interpretable, images)
    assert np.abs(found - expected).max() <= 0.005 * np.abs(expected).max()
    exact = artifacts.reference(images)
    assert np.abs(found - exact).max() <= 0.1 * np.abs(exact).max()


def test_attention_that_shares_rows_runs_as_planned(tmp_path: Path) -> None:
    """Two heads for three threads: a linear in three parts is still one layer of the plan, in integers."""
    target = replace(TARGET, threads=3)
    made = artifacts.make(tmp_path / "rows", target, INT8)
    with open_session(made, OpenOptions()) as opened:
        executed = opened.executed()
        assert unmet_layers(made.manifest.layers, executed) == []
    assert {type_ for name, _, type_ in executed if name == "blocks.0.attn.qkv"} == {"int8"}
    assert {type_ for name, _, type_ in executed if name == "blocks.0.attn.context"} == {"fp32"}
    written = operators_of(made)
    assert written.count("MultiHeadAttention") == 2 and "QAttention" not in written
    nodes = [node.name for node in onnx.load(made.graph_path).graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert [name for name in nodes if name.startswith("blocks.0.attn.qkv/")] == [
        f"blocks.0.attn.qkv/{part}" for part in "qkv"
    ]


def test_a_layer_that_runs_in_float_is_found_out(artifact: Artifact, tmp_path: Path) -> None:
    """The float graph under the quantized artifact's plan: every planned layer is missed."""
    float_artifact = artifacts.make(tmp_path / "float", TARGET, FLOAT)
    with open_session(float_artifact, OpenOptions(threads=1)) as opened:
        unmet = unmet_layers(artifact.manifest.layers, opened.executed())
    planned = [layer.name for layer in artifact.manifest.layers if layer.precision == "int8"]
    assert unmet == [f"{name} in fp32 instead of int8" for name in planned]


def test_options_are_set_and_read_back(artifact: Artifact) -> None:
    wanted = {
        "graph_optimization_level": "basic",
        "enable_cpu_mem_arena": False,
        "session.intra_op.allow_spinning": False,
    }
    with open_session(artifact, OpenOptions(threads=2, options=wanted)) as opened:
        assert {key: opened.info[key] for key in wanted} == wanted
        assert opened.info["threads"] == 2 and opened.info["provider"] == "CPUExecutionProvider"
        assert opened.info["execution_mode"] == "sequential"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OpenOptions(device="cuda:0"), "runs on 'cpu' here, not on 'cuda:0'"),
        (OpenOptions(options={"graph_optimisation_level": "all"}), "the nearest is 'graph_optimization_level'"),
        (OpenOptions(options={"graph_optimization_level": "most"}), "use none, basic, extended, all"),
        (OpenOptions(options={"enable_mem_pattern": "yes"}), "use true or false"),
    ],
)
def test_wishes_that_are_refused(artifact: Artifact, options: OpenOptions, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_backend(artifact, options)
    assert words in str(refused.value)


def tampered(artifact: Artifact, tmp_path: Path, data: bytes) -> Artifact:
    (tmp_path / artifact.manifest.graph).write_bytes(data)
    return Artifact(tmp_path, artifact.manifest)


def test_graphs_that_it_cannot_load(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="refuses the graph"):
        open_backend(tampered(artifact, tmp_path, b"no graph"), OpenOptions())
    model = onnx.load_from_string(artifact.graph_path.read_bytes())
    next(node for node in model.graph.node if node.op_type == "QAttention").op_type = "Teleport"
    with pytest.raises(ArtifactError, match=r"ONNX Runtime \S+ refuses the graph: \S") as refused:
        open_backend(tampered(artifact, tmp_path, model.SerializeToString()), OpenOptions())
    cause = str(refused.value.__cause__).strip().splitlines()[0]
    assert cause.endswith(refused.value.reason.partition("refuses the graph: ")[2]), "its own reason is passed on"
    other = lower(artifacts.request(TARGET, FLOAT, 2))
    with pytest.raises(ArtifactError, match=r"expected one tensor \('image', 'tensor\(uint8\)', \[1, 32, 48, 3\]\)"):
        open_backend(tampered(artifact, tmp_path, other.files[other.graph]), OpenOptions())


def test_memory_that_runs_out_is_a_resource() -> None:
    error = _explained(RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"), "run")
    assert isinstance(error, ResourceError) and error.reason == "memory ran out: bad allocation"
    assert isinstance(_explained(MemoryError("std::bad_alloc"), "run"), ResourceError)
    assert isinstance(_explained(MemoryError(), "run"), ResourceError)


@pytest.mark.parametrize(
    ("text", "reason"), [("it has gone out", "it has gone out"), ("", "ValueError"), ("\n ", "Value")]
)
def test_texts_that_no_version_has_said_yet_are_passed_on(text: str, reason: str) -> None:
    error = _explained(ValueError(text), "run")
    assert isinstance(error, ArtifactError) and f"refuses the graph: {reason}" in error.reason


def test_a_session_needs_neither_onnx_nor_safetensors(artifact: Artifact) -> None:
    """What the device extra installs is enough to open, run, profile and tell what was executed."""
    code = f"""
import sys
for name in ("onnx", "safetensors", "torch", "openvino"):
    sys.modules[name] = None
import numpy as np
from vitedge.runtimes.session import open_session
with open_session({str(artifact.path)!r}) as session:
    frames = np.zeros(session.input_shape, np.uint8)
    assert session.run(frames).shape == (1, 7) and session.executed() and session.profile(frames, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""


def test_facts() -> None:
    import onnxruntime

    assert detect.installed() == onnxruntime.__version__
    assert detect.runs_here("cpu")
    assert detect.describe()["providers"] == onnxruntime.get_available_providers()
    ours = {full for full, _ in providers.NAMES.values()}
    assert detect.runs_here("cuda:0") is not ours.isdisjoint(onnxruntime.get_available_providers())


# --- the interpreter -------------------------------------------------------------------------------------------------


def half_graph(operator: str) -> onnx.ModelProto:
    """uint8 [N, 1, 1, 3] -> ((x + 1) + 1) - 2040 in half precision -> float32 [N, 3]."""
    kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[operator]

    def constant(name: str, value: float) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, [1], [value])

    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kind),
        helper.make_node("Mul", ["x", "eight"], ["m"]),
        helper.make_node("Add", ["m", "one"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["b"]),
        helper.make_node("Sub", ["b", "most"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Cast", ["d"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, 1, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [constant("eight", 16.0), constant("one", 1.0), constant("most", 2048.0)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_float16_is_rounded_at_every_operator() -> None:
    image = np.array([[[[128, 129, 3]]]], np.uint8)
    x = np.float16(image) * np.float16(16)
    expected = ((x + np.float16(1)) + np.float16(1)) - np.float16(2048)
    found = run_graph(half_graph("float16"), image)
    assert np.array_equal(found, expected.reshape(1, 3).astype(np.float32))
    assert found[0, 0] == 0  # 2048 + 1 is 2048 in float16: computed in float32 throughout it would be 2


def test_bfloat16_is_rounded_at_every_operator() -> None:
    """2048 + 1 is 2048, 48 + 1 + 1 is 50, and 50 - 2048 = -1998 is -2000: eight bits of mantissa."""
    assert run_graph(half_graph("bfloat16"), np.array([[[[128, 0, 3]]]], np.uint8)).tolist() == [[0, -2048, -2000]]


def test_the_interpreter_says_what_stands_against_it() -> None:
    model = half_graph("float16")
    model.graph.node[3].op_type = "Teleport"
    with pytest.raises(ModelError) as refused:
        run_graph(model, np.zeros((1, 1, 1, 3), np.uint8))
    assert refused.value.action == "interpret a graph with ONNX Runtime" and refused.value.hint == "report this graph"
    assert refused.value.reason and refused.value.reason in str(refused.value.__cause__)


def test_the_plan_for_another_processor_is_interpreted() -> None:
    """For ARM, weights have 8 bits, which saturate here on x86 without VNNI: the golden logits come from Q/DQ."""
    from vitedge.runtimes.here import runs_here

    target = load_target("raspberry-pi-5")
    lowered = lower(artifacts.request(target, INT8, 6))
    images = np.random.default_rng(2).integers(0, 256, (6, *artifacts.PREPROCESSING.size, 3), dtype=np.uint8)
    assert lowered.interpretable is not None
    found, expected = run_graph(lowered.interpretable, images), artifacts.reference(images)
    assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()
    machine = processor()
    assert runs_here(target) == ("dotprod" in (machine.isa or ()))
    promised = replace(TARGET, isa="avx512_vnni")
    assert runs_here(promised) == ("avx512_vnni" in (machine.isa or ())) and runs_here(TARGET)
