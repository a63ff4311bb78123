"""Sessions on NVIDIA GPUs: what is said without one, and, against a stand-in, the logic around the calls."""

from __future__ import annotations

import functools
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import vitedge
from tests.graph.vits import tiny
from tests.runtimes.nvidia_contract import Place, SessionContract
from tests.runtimes.nvidia_stand_in import KERNEL, CudaStandIn, TensorRTStandIn, plan
from tests.runtimes.typed_vits import request, trained_like
from vitedge import runtimes
from vitedge.building.choices import autotune
from vitedge.building.engines import build as build_engines
from vitedge.building.engines import explain
from vitedge.core import isolation
from vitedge.device import hardware
from vitedge.errors import ArtifactError, NotInstalledError, ResourceError, UsageError
from vitedge.formats.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Golden,
    Manifest,
    npy,
    write_artifact,
)
from vitedge.formats.engines import INDEX, add, index
from vitedge.formats.model_folder import Origin
from vitedge.formats.result import Check
from vitedge.formats.target import Option
from vitedge.installation import install_command
from vitedge.runtimes._nvidia import building, engine, engines, layers, metadata, session, slot
from vitedge.runtimes._nvidia.driver import Cuda
from vitedge.runtimes._nvidia.engine import BuildOptions, Built
from vitedge.runtimes.base import Executed, Lowered, OpenOptions, Request
from vitedge.runtimes.session import Session, open_session

CONFIG = tiny()
SHAPE = (2, *CONFIG.image_size, 3)


@functools.cache
def lowered_for(target: str) -> tuple[Request, Lowered]:
    wish = request(trained_like(CONFIG), CONFIG, "fp16", target, batch=SHAPE[0])
    return wish, runtimes.part("tensorrt", "lowering").lower(wish)


def artifact(folder: Path, target: str = "jetson-orin-nano", **changes: Any) -> Artifact:
    wish, lowered = lowered_for(target)
    empty = npy(np.zeros((0, 1), np.float32))
    manifest = Manifest(
        name="tiny",
        target=wish.target,
        precision="fp16",
        variant="fp16",
        batch=wish.batch,
        graph=lowered.graph,
        classes=wish.classes,
        preprocessing=wish.preprocessing,
        layers=lowered.layers,
        precision_obtained={"fp16": 1.0},
        runtime_options=dict(lowered.runtime_options),
        built_with=dict(lowered.built_with),
        model_digest="0" * 64,
        origin=Origin(kind="test", source="test"),
        golden=Golden(pictures=(), executed_by="nobody", deviation=0.0),
        candidates=(),
    )
    files = {**lowered.files, GOLDEN_INPUTS: empty, GOLDEN_LOGITS: empty, GOLDEN_REFERENCE: empty}
    return write_artifact(folder / "artifact", replace(manifest, **changes), files, overwrite=False, action="test")


# --- without a GPU ---------------------------------------------------------------------------------------------------


def test_the_package_isnt_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "installed", lambda package: None)
    with pytest.raises(NotInstalledError, match=re.escape(f"run: {install_command('tensorrt')}")) as refused:
        open_session(artifact(tmp_path))
    assert refused.value.exit_code == 8


def test_on_a_jetson_tensorrt_comes_with_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runtimes.part("tensorrt", "detect")
    monkeypatch.setattr(engine, "installed", lambda package: None)
    monkeypatch.setattr(facts, "board", lambda: hardware.Board(model="", os="", kernel="", l4t="36.4.3", jetpack="6.2"))
    with pytest.raises(NotInstalledError, match="sudo apt install nvidia-jetpack") as refused:
        runtimes.require("tensorrt", "open it")
    assert "pip" not in refused.value.hint


@pytest.mark.parametrize(
    ("driver", "extra"), [("580.65", "tensorrt-cu13"), ("550.1", "tensorrt-cu12"), ("470.1", "tensorrt")]
)
def test_the_extra_is_the_one_of_the_driver(driver: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = hardware.Gpu(name="RTX", compute_capability="8.6", memory_mb=None, driver=driver)
    monkeypatch.setattr(hardware, "gpus", lambda: [gpu])
    monkeypatch.setattr(engine, "installed", lambda package: None)
    with pytest.raises(NotInstalledError) as refused:
        runtimes.require("tensorrt", "open it")
    assert refused.value.hint == f"run: {install_command(extra)}"


def test_an_arm_server_has_wheels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runtimes.part("tensorrt", "detect")
    monkeypatch.setattr(engine, "installed", lambda package: None)
    monkeypatch.setattr(facts.platform, "machine", lambda: "aarch64")
    with pytest.raises(NotInstalledError, match='install tensorrt-cu13 "cuda-bindings>=13"'):
        runtimes.require("tensorrt", "open it")


@pytest.mark.parametrize(
    ("package", "driver", "said"),
    [
        ("tensorrt", "550.1", f"this driver serves CUDA 12; run: {install_command('tensorrt-cu12')}"),
        (
            "tensorrt",
            "470.1",
            "update the driver: CUDA 13 takes driver 580 or newer, CUDA 12 takes driver 535",
        ),
        ("tensorrt_rtx", "550.1", "update the driver: CUDA 13 takes driver 580 or newer"),
    ],
)
def test_a_driver_that_is_too_old(
    package: str, driver: str, said: str, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = hardware.Gpu(name="RTX", compute_capability="8.6", memory_mb=None, driver=driver)
    monkeypatch.setattr(hardware, "gpus", lambda: [gpu])
    error = cuda.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(cuda, "cudaDriverGetVersion", lambda: (error, 0), raising=False)
    with pytest.raises(ResourceError, match="cudaDriverGetVersion: cudaErrorInsufficientDriver") as refused:
        Cuda("open it", package).version("cudaDriverGetVersion")
    assert refused.value.hint.startswith(said)


@pytest.mark.skipif(runtimes.installed("tensorrt_rtx") is None, reason="TensorRT-RTX isn't installed")
def test_the_python_api_has_what_sessions_use() -> None:
    trt = engine.load("tensorrt_rtx", "open it")
    used = {
        trt: "Runtime TensorIOMode LayerInformationFormat IProfiler ProfilingVerbosity MemoryPoolType BuilderFlag",
        trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape create_execution_context "
        "create_engine_inspector create_runtime_config",
        trt.IRuntimeConfig: "create_runtime_cache set_runtime_cache",
        trt.IRuntimeCache: "serialize deserialize",
        trt.IBuilderConfig: "create_timing_cache set_timing_cache get_timing_cache progress_monitor max_aux_streams "
        "builder_optimization_level set_memory_pool_limit profiling_verbosity",
        trt.IProgressMonitor: "phase_start step_complete phase_finish",
        trt.IExecutionContext: "set_tensor_address execute_async_v3 profiler",
        trt.EngineInspector: "get_engine_information",
        trt.IProfiler: "report_layer_time",
        trt.Runtime: "deserialize_cuda_engine",
    }
    for holder, names in used.items():
        assert [name for name in names.split() if not hasattr(holder, name)] == []


CUDA_CALLS = (
    *("cudaMalloc", "cudaMallocHost", "cudaHostAlloc", "cudaHostGetDevicePointer", "cudaFree", "cudaFreeHost"),
    *("cudaStreamCreate", "cudaStreamDestroy", "cudaStreamSynchronize", "cudaStreamBeginCapture"),
    *("cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch", "cudaGraphDestroy", "cudaGraphExecDestroy"),
    *("cudaEventCreate", "cudaEventDestroy", "cudaEventRecord", "cudaEventElapsedTime", "cudaMemcpyAsync"),
    *("cudaGetDeviceProperties", "cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaHostAllocMapped"),
    *("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t"),
)


def test_the_stand_in_has_what_cuda_has() -> None:
    assert [name for name in CUDA_CALLS if not hasattr(CudaStandIn(), name)] == []


def test_cudas_bindings_have_what_sessions_use() -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings isn't installed")
    assert [name for name in CUDA_CALLS if not hasattr(bindings, name)] == []
    properties = bindings.cudaDeviceProp()
    assert [
        name for name in ("name", "major", "minor", "integrated", "totalGlobalMem") if not hasattr(properties, name)
    ] == []
    if not hardware.gpus():
        with pytest.raises(ResourceError, match=r"cudaGetDeviceProperties: \S") as refused:
            Cuda("open it", "tensorrt").gpu()
        assert "driver" in refused.value.hint


def test_the_package_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(NotInstalledError, match=r"'tensorrt' can't be imported: libnvinfer.so.10"):
        engine.load("tensorrt", "open it")


@pytest.mark.skipif(runtimes.installed("tensorrt_rtx") is None, reason="TensorRT-RTX isn't installed")
def test_installed_but_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "gpus", list)
    with pytest.raises(ResourceError) as refused:
        open_session(artifact(tmp_path, "tensorrt-rtx"))
    assert refused.value.reason == "no NVIDIA GPU answers here, and TensorRT-RTX runs on nothing else"
    assert refused.value.hint.startswith("copy the artifact to the device and open it there")


def test_facts_for_the_doctor() -> None:
    for runtime in ("tensorrt", "tensorrt_rtx"):
        facts = runtimes.part(runtime, "detect")
        found = facts.describe()
        assert found["version"] == facts.installed()
        assert facts.runs_here("cuda:0") is (found["version"] is not None and found["gpus"] != "no GPU")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tf23": True}, "there is no option 'tf23' = True; the nearest is 'tf32'"),
        ({"tf32": 1}, "there is no option 'tf32' = 1"),
        ({"workspace_mb": True}, "there is no option 'workspace_mb' = True"),
        ({"strongly_typed": False}, "its graph isn't meant to be strongly typed"),
    ],
)
def test_options_that_tensorrt_hasnt(options: dict[str, Option], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        session.build_options({"strongly_typed": True, "tf32": False, **options}, "open it")


def test_options_that_it_has() -> None:
    wanted = {"strongly_typed": True, "tf32": True, "optimization_level": 4, "workspace_mb": 512}
    assert session.build_options(wanted, "open it") == BuildOptions(tf32=True, optimization_level=4, workspace_mb=512)


def test_the_contract_is_read_from_the_graph(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    assert session.read_contract(made) == request(trained_like(CONFIG), CONFIG, "fp16").metadata


# --- against the stand-in --------------------------------------------------------------------------------------------

LAYERS = [
    {
        "Name": "__myl_Fc_1",
        "LayerType": "gemm",
        "Inputs": [{"Format/Datatype": "Row major Int8"}, {"Format/Datatype": "Row major FP16"}],
        "Outputs": [{"Format/Datatype": "Row major FP16"}],
        "Metadata": "[ONNX Layer: blocks.0.attn.qkv]\x1e[ONNX Layer: blocks.0.attn.qkv.bias]",
    },
    {"Name": "reformat", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": []},
]
COMPUTE = KERNEL * len(LAYERS)


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStandIn]:
    """CUDA and TensorRT are replaced; time is the stand-in's; nothing may be left when the test ends."""
    cuda = CudaStandIn()
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, TensorRTStandIn(cuda, name))
    monkeypatch.setattr(engine, "installed", lambda package: VERSION[-1])
    for module in (session, building):
        monkeypatch.setattr(module, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(isolation, "run_isolated", build)
    monkeypatch.setattr(slot, "perf_counter_ns", lambda: cuda.clock * 1000)
    monkeypatch.setattr(build, "result", plan(*SHAPE[:3], CONFIG.num_classes, LAYERS))
    build.graphs.clear()
    VERSION[:] = ["10.3.0"]
    yield cuda
    assert cuda.alive == 0


VERSION = ["10.3.0"]


class _Build:
    """In place of the child process: notes what was built."""

    def __init__(self) -> None:
        self.graphs: list[tuple[Any, ...]] = []
        self.result: bytes | Exception = b""

    def __call__(self, function: object, *arguments: Any, timeout_s: float, heard: Any) -> Built:
        assert function is engine.build and timeout_s > 60
        self.graphs.append(arguments)
        heard("500")
        if isinstance(self.result, Exception):
            raise self.result
        return Built(self.result, b"timings", 12.5, 700)


build = _Build()


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def sums(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), -1).sum(axis=1, dtype=np.float32)


def plainly(**options: Option) -> OpenOptions:
    """Nothing to choose: every option that is measured otherwise is set."""
    return OpenOptions(options={"cuda_graph": False, "zero_copy": False, **options})


def test_an_inference_and_its_stages(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path), plainly()) as opened:
        logits, stages = opened.run_timed(images())
        np.testing.assert_array_equal(logits[:, 0], sums(images()))
        assert stages == (1_000_000, COMPUTE * 1_000_000, 1_000_000), "the stand-in's clock"
        kept = logits.copy()
        opened.run(images(1))
        np.testing.assert_array_equal(logits, kept, "the caller's logits are the caller's")
        engine_digest = opened.info["engine"]
        assert opened.info == {
            "runtime": "tensorrt",
            "version": "10.3.0",
            "device": "cuda:0 Stand-in",
            "sm": "8.7",
            "strongly_typed": True,
            "tf32": False,
            "workspace_mb": 1024,
            "engine": engine_digest,
            "contexts": 2,
            "cuda_graph": False,
            "zero_copy": False,
        }


class TestOnTheStandIn(SessionContract):
    """What ``test_gpu.py`` runs on real hardware."""

    @pytest.fixture
    def place(self, tmp_path: Path, cuda: CudaStandIn) -> Place:
        def expected(images: np.ndarray) -> np.ndarray:
            logits = np.zeros((len(images), CONFIG.num_classes), np.float32)
            logits[:, 0] = sums(images)
            return logits

        return Place(artifact(tmp_path), expected, 0.0, lambda: cuda.alive)


# --- how an inference is started ---


def test_a_graph_is_captured_where_it_is_faster_and_the_choice_is_noted(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    with open_session(made) as opened:
        assert opened.info["cuda_graph"] is True and opened.info["zero_copy"] is False
        assert (opened.info["plain_us"], opened.info["CUDA graph_us"]) == (COMPUTE + 2, 3)
        logits, stages = opened.run_timed(images())
        np.testing.assert_array_equal(logits[:, 0], sums(images()))
        assert stages == (1_000_000, 1_000_000, 1_000_000)
        first = dict(opened.info)
    measured = cuda.launches
    with open_session(made) as opened:
        assert dict(opened.info) == first
        assert cuda.launches == measured, "read from the note, not measured again"


def test_a_graph_that_gains_nothing_isnt_taken(tmp_path: Path, cuda: CudaStandIn, monkeypatch: Any) -> None:
    monkeypatch.setattr(slot, "perf_counter_ns", lambda: 0)
    with open_session(artifact(tmp_path)) as opened:
        assert opened.info["cuda_graph"] is False


def test_a_graph_that_cant_be_captured_isnt_taken(tmp_path: Path, cuda: CudaStandIn) -> None:
    cuda.refuses_capture = True
    with open_session(artifact(tmp_path)) as opened:
        assert opened.info["cuda_graph"] is False and "CUDA graph_us" not in opened.info
        np.testing.assert_array_equal(opened.run(images())[:, 0], sums(images()))
    with pytest.raises(ResourceError, match="cudaStreamBeginCapture: cudaErrorStreamCaptureUnsupported"):
        open_session(artifact(tmp_path / "wished"), OpenOptions(options={"cuda_graph": True}))


def test_shared_memory_is_used_without_copies_where_it_is_faster(tmp_path: Path, cuda: CudaStandIn) -> None:
    cuda.gpu.integrated = 1
    with open_session(artifact(tmp_path)) as opened:
        assert (opened.info["zero_copy"], opened.info["cuda_graph"]) == (True, True)
        logits, stages = opened.run_timed(images())
        np.testing.assert_array_equal(logits[:, 0], sums(images()))
        assert stages == (None, 1_000_000, None), "there is nothing to copy"
        tickets = [opened.submit(images(seed)) for seed in range(3)]
        for seed, ticket in enumerate(tickets):
            np.testing.assert_array_equal(opened.collect(ticket)[:, 0], sums(images(seed)))


@pytest.mark.parametrize("note", [b"", b"{}", b'{"way": "by magic", "us": {}}', b'{"way": "plain", "us": 3}'])
def test_a_note_that_says_nothing_is_measured_again(tmp_path: Path, cuda: CudaStandIn, note: bytes) -> None:
    made = artifact(tmp_path)
    open_session(made).close()
    (file,) = (path for path in (tmp_path / "cache").rglob("*.json") if path.name != INDEX)
    file.write_bytes(note)
    with open_session(made) as opened:
        assert opened.info["cuda_graph"] is True


def test_a_context_for_each_inference_in_flight(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path), OpenOptions(options={"contexts": 3})) as opened:
        assert len(cuda.streams) == 1, "the others are made when they're first wanted"
        for seed in range(5):
            opened.submit(images(seed))
        assert len(cuda.streams) == 3


def test_the_stand_in_notices_misuse(cuda: CudaStandIn) -> None:
    """Tests against it mean something only if it fails where the real thing would."""
    _, stream = cuda.cudaStreamCreate()
    _, host = cuda.cudaMallocHost(8)
    _, device = cuda.cudaMalloc(8)
    assert host is not None and device is not None
    with pytest.raises(AssertionError, match="4 bytes of 8"):
        cuda.cudaMemcpyAsync(device, host, 4, "in", stream)
    with pytest.raises(AssertionError, match="memory expected"):
        cuda.cudaMemcpyAsync(host, host, 8, "in", stream)
    ctypes_host = cuda.at(host, 8, "host")
    ctypes_host[0] = 7
    cuda.cudaMemcpyAsync(device, host, 8, "in", stream)
    assert cuda.at(device, 8, "device")[0] == 0xAB, "what wasn't waited for isn't there"
    with pytest.raises(AssertionError, match="freed while work is waiting"):
        cuda.cudaFree(device)
    cuda.cudaStreamSynchronize(stream)
    assert cuda.at(device, 8, "device")[0] == 7
    cuda.cudaFree(device)
    with pytest.raises(AssertionError, match="isn't there, or no longer"):
        cuda.cudaMemcpyAsync(device, host, 8, "in", stream)
    cuda.cudaFreeHost(host)
    cuda.cudaStreamDestroy(stream)
    with pytest.raises(AssertionError, match="isn't there, or no longer"):
        cuda.cudaEventRecord(0, stream)


def test_executed_layers_have_their_onnx_names_and_types(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path)) as opened:
        assert opened.executed() == [
            Executed("blocks.0.attn.qkv", "gemm", "int8"),
            Executed("blocks.0.attn.qkv.bias", "gemm", "int8"),
            Executed("reformat", "Reformat", "fp16"),
        ]
        assert opened.info["cuda_graph"] is True
        rounds = opened.profile(images(), repeats=3)
        assert [[(time.name, time.type, time.ns) for time in one] for one in rounds] == [
            [("blocks.0.attn.qkv+blocks.0.attn.qkv.bias", "int8", 250_000), ("reformat", "fp16", 250_000)]
        ] * 3, "kernel by kernel, although inferences run as a graph"
        assert layers.parse(opened.layer_information() or "")[0].nodes == (
            "blocks.0.attn.qkv",
            "blocks.0.attn.qkv.bias",
        )


# --- engines and their metadata ---


def test_the_engine_is_built_once(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    for _ in range(3):
        open_session(made).close()
    graph = made.graph_path.read_bytes()
    options = BuildOptions(tf32=False, workspace_mb=1024)
    assert build.graphs == [("tensorrt", graph, options, b"")]
    open_session(made, OpenOptions(options={"tf32": True})).close()
    assert build.graphs[1:] == [("tensorrt", graph, BuildOptions(tf32=True, workspace_mb=1024), b"timings")]
    open_session(made).close()
    assert len(build.graphs) == 2, "both are kept"


def test_a_copy_of_the_artifact_finds_the_engine(tmp_path: Path, cuda: CudaStandIn) -> None:
    """What is built while an artifact is still being exported serves the finished one."""
    open_session(artifact(tmp_path)).close()
    open_session(artifact(tmp_path / "again", licence="MIT")).close()
    assert len(build.graphs) == 1


@pytest.mark.parametrize("damage", ["plan", "index", "gone", "newer"])
def test_an_engine_that_isnt_what_was_built_is_built_anew(tmp_path: Path, cuda: CudaStandIn, damage: str) -> None:
    made = artifact(tmp_path)
    open_session(made).close()
    (file,) = (tmp_path / "cache").rglob("*.plan")
    index = file.with_name(INDEX)
    (metadata,) = json.loads(index.read_bytes())["engines"]
    assert (metadata["gpu"], metadata["sm"], metadata["version"]) == ("Stand-in", "8.7", "10.3.0")
    assert (metadata["driver"], metadata["cuda"], metadata["seconds"]) == ("12.6", "12.6", 12.5)
    if damage == "plan":
        file.write_bytes(file.read_bytes() + b" ")
    elif damage == "index":
        index.write_bytes(b"{")
    elif damage == "newer":
        index.write_bytes(b'{"schema_version": 99, "vitedge_version": "9"}')
    else:
        file.unlink()
    open_session(made).close()
    assert len(build.graphs) == 2
    assert len(list((tmp_path / "cache").rglob("*.plan"))) == 1


def foreign(cuda: CudaStandIn, what: str) -> str:
    """Change this place; returns what has to be said."""
    if what == "version":
        VERSION[:] = ["10.7.0"]
        return "version 10.3.0, here 10.7.0"
    if what == "driver":
        cuda.driver = 13000
        return "driver 12.6, here 13.0"
    if what == "cuda":
        cuda.runtime = 12090
        return "CUDA 12.6, here 12.9"
    cuda.gpu.name, cuda.gpu.minor = b"Other", 9
    return "GPU Stand-in, here Other; compute capability 8.7, here 8.9"


@pytest.mark.parametrize("what", ["version", "driver", "cuda", "gpu"])
def test_a_foreign_engine_is_never_loaded(tmp_path: Path, cuda: CudaStandIn, what: str) -> None:
    made = artifact(tmp_path)
    open_session(made).close()
    said = foreign(cuda, what)
    loaded = sys.modules["tensorrt"].loaded
    with pytest.raises(ArtifactError) as refused:
        open_session(made, OpenOptions(build=False))
    assert refused.value.reason == f"the engine that is there was built for something else: {said}"
    assert refused.value.hint == f"run: vitedge build {made.path}"
    assert sys.modules["tensorrt"].loaded == loaded
    (row,) = build_engines(made)
    assert row["because"].endswith(said) and row["built"]
    assert len(build.graphs) == 2
    open_session(made, OpenOptions(build=False)).close()


def test_without_an_engine_and_without_building(tmp_path: Path, cuda: CudaStandIn) -> None:
    with pytest.raises(ArtifactError, match=r"there is no engine of it for TensorRT 10.3.0 for Stand-in, SM 8.7"):
        open_session(artifact(tmp_path), OpenOptions(build=False))


def test_engines_travel_beside_the_artifact(tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path)
    digest = made.digest
    (row,) = build_engines(made, out=tmp_path / "artifact.engines")
    assert row["folder"] == str(tmp_path / "artifact.engines") and row["gpu"] == "Stand-in"
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "another device"))
    with open_session(made, OpenOptions(build=False)) as opened:
        np.testing.assert_array_equal(opened.run(images())[:, 0], sums(images()))
    assert Artifact.open(made.path).digest == digest
    open_session(made, OpenOptions(options={"tf32": True})).close()
    assert build.graphs[-1][-1] == b"timings", "what the other device measured travels, too"
    with pytest.raises(UsageError, match="already exists"):
        build_engines(made, out=tmp_path / "artifact.engines")
    build_engines(made, out=tmp_path / "artifact.engines", overwrite=True)
    (file,) = (tmp_path / "artifact.engines").glob("*.plan")
    file.write_bytes(b"another engine")
    with pytest.raises(ArtifactError, match="isn't what was written"):
        open_session(made, OpenOptions(build=False))


def another_gpu(cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As if what follows ran on another device."""
    cuda.gpu.name, cuda.gpu.minor = b"Other", 9
    monkeypatch.setenv("VITEDGE_CACHE", str(folder))


def test_one_folder_serves_several_devices(tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = artifact(tmp_path), tmp_path / "artifact.engines"
    build_engines(made, out=out)
    another_gpu(cuda, monkeypatch, tmp_path / "another device")
    build_engines(made, out=out, overwrite=True)
    assert [one.gpu for one in index(out).engines] == ["Stand-in", "Other"]
    assert len(list(out.glob("*.cache"))) == 2, "each GPU's own timings travel"
    cuda.gpu.name, cuda.gpu.minor = b"Stand-in", 7
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "third device"))
    open_session(made, OpenOptions(build=False)).close()
    open_session(made, OpenOptions(options={"tf32": True})).close()
    assert build.graphs[-1][-1] == b"timings"
    found = vitedge.inspect(out)
    assert found.kind == "engines"
    assert [row[:2] for row in found.sections[0].rows] == [("8.7", "Stand-in"), ("8.9", "Other")]
    damaged = next(out / one.file for one in index(out).engines if one.gpu == "Other")
    damaged.write_bytes(b"another engine")
    assert "isn't what was written" in vitedge.inspect(out).sections[0].rows[1][-1]
    build_engines(made, out=out, overwrite=True)
    assert [one.gpu for one in index(out).engines] == ["Stand-in"], "a damaged engine isn't carried on"


def test_what_a_device_built_is_written_for_equal_ones(
    tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(tmp_path)
    vitedge.build(made, engines=tmp_path / "built")
    assert [one.gpu for one in index(tmp_path / "built").engines] == ["Stand-in"]
    assert len(list((tmp_path / "built").glob("*.cache"))) == 1
    (tmp_path / "built").rename(engines.beside(made.path))
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "an equal device"))
    (row,) = vitedge.build(made, engines=tmp_path / "nothing")
    assert not row["built"] and not (tmp_path / "nothing").exists(), "it came with the artifact"
    another_gpu(cuda, monkeypatch, tmp_path / "another device")
    (row,) = vitedge.build(made, engines=engines.beside(made.path))
    assert row["built"] and [one.gpu for one in index(engines.beside(made.path)).engines] == ["Stand-in", "Other"]


def test_candidates_find_their_engines_beside_the_artifact_that_has_them(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    assert engines.beside(made.path / "candidates" / "int8") == tmp_path / "artifact.engines"
    assert engines.beside(tmp_path / "candidates" / "int8") == tmp_path / "candidates" / "int8.engines"


def test_engines_of_another_graph_go_with_overwrite(
    tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = artifact(tmp_path), tmp_path / "artifact.engines"
    build_engines(made, out=out)
    (file,) = (path for path in out.iterdir() if path.name == INDEX)
    graph = json.loads(file.read_bytes())["engines"][0]["graph"]
    file.write_text(file.read_text().replace(graph, "f" * 64))
    another_gpu(cuda, monkeypatch, tmp_path / "another device")
    build_engines(made, out=out, overwrite=True)
    assert [one.gpu for one in index(out).engines] == ["Other"]


def test_a_dry_run_builds_nothing(tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path)
    (row,) = vitedge.plan_build(made.path)
    assert (row["builds"], row["because"], row["earlier"], build.graphs) == (True, "", [], [])
    assert row["memory_mb"] == engines.BASE_MB["tensorrt"] + made.manifest.runtime_options["workspace_mb"]
    build_engines(made, out=tmp_path / "artifact.engines")
    (row,) = vitedge.plan_build(made.path)
    assert not row["builds"] and row["folder"] == str(tmp_path / "artifact.engines")
    another_gpu(cuda, monkeypatch, tmp_path / "another device")
    (row,) = vitedge.plan_build(made.path, options={"workspace_mb": 64})
    assert row["builds"] and "GPU Stand-in, here Other" in row["because"]
    assert row["memory_mb"] == engines.BASE_MB["tensorrt"] + 64
    assert row["earlier"] == [
        {"runtime": "tensorrt 10.3.0", "gpu": "Stand-in", "sm": "8.7", "seconds": 12.5, "peak_mb": 700}
    ]
    assert len(build.graphs) == 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_index_never_gives_an_engine(data: st.DataObject) -> None:
    """Whatever stands in ``engines.json``: nothing is raised, and what is given has the digest in its metadata."""
    wanted = metadata.for_building("tensorrt", "10.3.0", "a" * 64, BuildOptions(), "8.7")
    with tempfile.TemporaryDirectory() as folder:
        add(Path(folder), "tiny", b"an engine", wanted, "test")
        file = Path(folder) / INDEX
        index = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(index)
        found = engines.look_for(Path(folder), wanted)
        assert isinstance(found, list) or found.plan == b"an engine"


def test_progress_is_told(tmp_path: Path, cuda: CudaStandIn) -> None:
    told: list[tuple[str, int, int]] = []
    open_session(artifact(tmp_path), OpenOptions(progress=lambda *step: told.append(step))).close()
    assert told == [("build", 0, 1000), ("build", 500, 1000), ("build", 1000, 1000)]


def test_tensorrt_builds_for_the_gpu_that_is_here_alone(tmp_path: Path, cuda: CudaStandIn, monkeypatch: Any) -> None:
    made = artifact(tmp_path)
    with pytest.raises(UsageError, match="builds for the GPU that it finds, not for compute"):
        build_engines(made, sms=["8.9"])
    monkeypatch.setattr(building, "gpus", list)
    with pytest.raises(ResourceError, match="run there: vitedge build artifact"):
        build_engines(made)


def test_tensorrt_rtx_builds_ahead_and_keeps_what_it_compiled(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path, "tensorrt-rtx")
    rows = build_engines(made, sms=["8.6", "8.9"])
    assert [(row["sm"], row["gpu"], row["because"]) for row in rows] == [("8.6", None, ""), ("8.9", None, "")]
    cuda.gpu.minor = 9
    for _ in range(2):
        with open_session(made, OpenOptions(build=False)) as opened:
            np.testing.assert_array_equal(opened.run(images())[:, 0], sums(images()))
    (file,) = (tmp_path / "cache").rglob("*.jit")
    assert file.read_bytes() == b"kernels"


def test_fp8_on_a_gpu_without(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    planned = tuple(replace(layer, precision="fp8") for layer in made.manifest.layers)
    with pytest.raises(UsageError, match=r"FP8 needs compute capability 8.9; this GPU has 8.7"):
        open_session(artifact(tmp_path / "fp8", layers=planned))


@pytest.fixture(scope="module")
def candidates(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Exported where there is no TensorRT: their arithmetic was interpreted."""
    folder = tmp_path_factory.mktemp("candidates")
    return [vitedge.export(small_model, "tensorrt", wish, folder / wish) for wish in ("fp16", "fp32")]


def test_autotune_builds_measures_and_keeps_one(
    candidates: list[Artifact], tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = Check(name="golden logits", ok=True, detail="the stand-in computes sums, not what was exported")
    monkeypatch.setattr("vitedge.benchmarking.opened.golden_check", lambda session: fits)
    build.result = plan(1, 32, 32, 5, LAYERS)
    timed = autotune(candidates, out=tmp_path / "best", duration_s=0.05)
    assert len(build.graphs) == 2 and [one.precision for one in timed] == ["fp16", "fp32"]
    assert [one.top1_drop_pp for one in timed] == [None, None], "nothing is quantized: nothing was lost"
    (chosen,) = (one for one in timed if one.chosen)
    assert chosen.latency_p50_ms == min(one.latency_p50_ms for one in timed)
    kept = Artifact.open(tmp_path / "best")
    assert kept.manifest.precision == chosen.precision
    open_session(kept, OpenOptions(build=False)).close()
    assert len(build.graphs) == 2, "the copy finds the engine"


def test_explaining_engines(candidates: list[Artifact], cuda: CudaStandIn) -> None:
    build.result = plan(1, 32, 32, 5, LAYERS)
    found, compared = explain(candidates)
    assert [one.ns for one in found.values()] == [500_000, 500_000] and len(compared) == 1
    assert found[str(candidates[0].path)].sentences[0] == "Of the time: 50% int8, 50% moving."


# --- the builder's own calls ---


def test_a_build_sets_everything_explicitly(cuda: CudaStandIn) -> None:
    wanted = BuildOptions(tf32=False, optimization_level=4, workspace_mb=256, aux_streams=1)
    built = engine.build("tensorrt", b"a graph", wanted, b"before")
    config = sys.modules["tensorrt"].config
    assert config.flags == set() and config.pools == {"workspace": 256 << 20}
    assert (config.builder_optimization_level, config.max_aux_streams) == (4, 1)
    assert config.profiling_verbosity == "detailed"
    assert config.timings == b"before" and built.timing_cache == b"before+timed"
    engine.build("tensorrt", b"a graph", BuildOptions(tf32=True), b"foreign GPU's")
    assert sys.modules["tensorrt"].config.flags == {"TF32"}
    assert sys.modules["tensorrt"].config.timings == b""


def test_out_of_memory_says_what_to_lower(cuda: CudaStandIn) -> None:
    sys.modules["tensorrt"].fails = "Internal Error: Cuda Runtime (out of memory)"
    with pytest.raises(ResourceError, match="lower the batch, or workspace_mb"):
        engine.build("tensorrt", b"a graph")
    sys.modules["tensorrt"].fails = "Could not find any implementation for node {ForeignNode}"
    with pytest.raises(ArtifactError, match="Could not find any implementation"):
        engine.build("tensorrt", b"a graph")


def test_progress_of_nested_phases_never_goes_back() -> None:
    told: list[float] = []
    phases = engine.Phases(told.append)
    phases.start("whole", None, 2)
    phases.start("inner", "whole", 4)
    for _ in range(4):
        phases.step("inner")
    phases.finish("inner")
    phases.step("whole")
    phases.start("inner", "whole", 2)
    phases.step("inner")
    phases.step("whole")
    phases.finish("whole")
    phases.step("nobody started this")
    assert told == [0.125, 0.25, 0.375, 0.495, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("free_mb", "swap_mb", "enough"), [(4000, 0, True), (900, 0, False), (900, 8192, True)])
def test_little_memory_on_a_board(tmp_path: Path, free_mb: int, swap_mb: int, enough: bool) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: 8000000 kB\nMemAvailable: {free_mb * 1024} kB\nSwapTotal: {swap_mb * 1024} kB\n"
    )
    options = BuildOptions(workspace_mb=1024)
    engines.refuse_little_memory(20 << 20, options, "build", tmp_path)  # no board
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    if enough:
        engines.refuse_little_memory(20 << 20, options, "build", tmp_path)
    else:
        with pytest.raises(ResourceError, match=r"about 2,004 MiB .* 900 MiB are free, with 0 MiB of swap"):
            engines.refuse_little_memory(20 << 20, options, "build", tmp_path)


# --- closing and failing ---


def test_close_twice_and_reopen(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    for _ in range(3):
        opened = open_session(made)
        opened.submit(images())
        opened.collect(0)
        opened.close()
        opened.close()
        assert cuda.alive == 0
    with pytest.raises(UsageError, match="it's closed"):
        opened.run(images())


def test_closing_with_work_in_flight_waits_for_it(tmp_path: Path, cuda: CudaStandIn) -> None:
    opened = open_session(artifact(tmp_path))
    for seed in range(2):
        opened.submit(images(seed))
    opened.close()


def test_failures_leave_nothing_behind(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    build.result = isolation.ChildError("the process was killed by SIGSEGV")
    with pytest.raises(ArtifactError, match=r"building the engine with TensorRT 10.3.0: the process was killed by SIG"):
        open_session(made)
    build.result = ResourceError("build", "out of memory", "lower workspace_mb")
    with pytest.raises(ResourceError, match="lower workspace_mb"):
        open_session(made)
    build.result = plan(1, *SHAPE[1:3], CONFIG.num_classes)
    with pytest.raises(ArtifactError, match=r"the engine's 'image' is \[1, 32, 48, 3\]; expected \[2, 32, 48, 3\]"):
        open_session(made)
    build.result = b"not an engine"
    with pytest.raises(ArtifactError, match="the engine can't be loaded, although its metadata fit"):
        open_session(made, OpenOptions(options={"tf32": True}))
    build.result = plan(*SHAPE[:3], CONFIG.num_classes)
    sys.modules["tensorrt"].no_context = True
    with pytest.raises(ResourceError, match="no memory for the engine's activations"):
        open_session(made, OpenOptions(options={"workspace_mb": 1}))
    sys.modules["tensorrt"].no_context = False
    cuda.left = 16
    with pytest.raises(ResourceError, match="cudaMalloc: cudaErrorMemoryAllocation") as refused:
        open_session(made, OpenOptions(options={"workspace_mb": 1}))
    assert "lower the batch or the option 'contexts'" in refused.value.hint
    assert cuda.alive == 0


def test_another_device_is_refused(tmp_path: Path, cuda: CudaStandIn) -> None:
    with pytest.raises(UsageError, match="the device is 'cpu'; vitedge opens the first that CUDA shows"):
        open_session(artifact(tmp_path), OpenOptions(device="cpu"))


def test_cuda_python_isnt_installed(tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NotInstalledError, match="the package 'cuda-bindings' is not installed"):
        open_session(artifact(tmp_path))


def test_a_session_is_a_session(tmp_path: Path, cuda: CudaStandIn) -> None:
    opened = open_session(artifact(tmp_path))
    assert isinstance(opened, Session) and opened.batch == SHAPE[0]
    pictures = [image for seed in range(3) for image in images(seed)][:5]
    logits = list(opened.map_batches(pictures))
    np.testing.assert_array_equal(np.stack(logits)[:, 0], sums(np.stack(pictures)))
    opened.close()
