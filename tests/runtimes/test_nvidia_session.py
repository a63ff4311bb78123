"""Sessions on NVIDIA GPUs: what is said without one, and, against a stand-in, the logic around the calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tests.graph.vits import tiny
from tests.runtimes.nvidia_stand_in import CudaStandIn, TensorRTStandIn, plan
from tests.runtimes.typed_vits import request, trained_like
from vitedge import hardware, isolation, runtimes
from vitedge.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Golden,
    Manifest,
    npy,
    write_artifact,
)
from vitedge.errors import ArtifactError, NotInstalledError, ResourceError, UsageError
from vitedge.model_folder import Origin
from vitedge.runtimes._nvidia import engine, session
from vitedge.runtimes._nvidia.engine import BuildOptions
from vitedge.runtimes.contract import Executed, OpenOptions
from vitedge.runtimes.session import Session, open_session
from vitedge.target import Option

CONFIG = tiny()
SHAPE = (2, *CONFIG.image_size, 3)


def artifact(folder: Path, target: str = "jetson-orin-nano", **changes: Any) -> Artifact:
    wish = request(trained_like(CONFIG), CONFIG, "fp16", target, batch=SHAPE[0])
    placed = runtimes.part("tensorrt", "placement").place(wish)
    empty = npy(np.zeros((0, 1), np.float32))
    manifest = Manifest(
        name="tiny",
        target=wish.target,
        precision="fp16",
        form="fp16",
        batch=wish.batch,
        graph=placed.graph,
        classes=wish.classes,
        preprocessing=wish.preprocessing,
        layers=placed.layers,
        precision_obtained={"fp16": 1.0},
        runtime_options=dict(placed.runtime_options),
        built_with=dict(placed.built_with),
        model_digest="0" * 64,
        origin=Origin(kind="test", source="test"),
        golden=Golden(pictures=(), executed_by="nobody", deviation=0.0),
        candidates=(),
    )
    files = {**placed.files, GOLDEN_INPUTS: empty, GOLDEN_LOGITS: empty, GOLDEN_REFERENCE: empty}
    return write_artifact(folder / "artifact", replace(manifest, **changes), files, overwrite=False, asked="test")


# --- without a GPU ---------------------------------------------------------------------------------------------------


def test_the_package_isnt_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "installed", lambda package: None)
    with pytest.raises(NotInstalledError, match=r'run: pip install "vitedge\[tensorrt\]"') as refused:
        open_session(artifact(tmp_path))
    assert refused.value.exit_code == 8


def test_on_a_jetson_tensorrt_comes_with_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runtimes.part("tensorrt", "facts")
    monkeypatch.setattr(engine, "installed", lambda package: None)
    monkeypatch.setattr(facts, "board", lambda: hardware.Board(model="", os="", kernel="", l4t="36.4.3", jetpack="6.2"))
    with pytest.raises(NotInstalledError, match="sudo apt install nvidia-jetpack") as refused:
        runtimes.require("tensorrt", "open it")
    assert "pip" not in refused.value.fix


@pytest.mark.skipif(runtimes.installed("tensorrt_rtx") is None, reason="TensorRT-RTX isn't installed")
def test_the_python_api_has_what_sessions_use() -> None:
    trt = engine.load("tensorrt_rtx", "open it")
    used = {
        trt: "Runtime TensorIOMode LayerInformationFormat IProfiler ProfilingVerbosity MemoryPoolType BuilderFlag",
        trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape create_execution_context "
        "create_engine_inspector",
        trt.IExecutionContext: "set_tensor_address execute_async_v3 profiler",
        trt.EngineInspector: "get_engine_information",
        trt.IProfiler: "report_layer_time",
        trt.Runtime: "deserialize_cuda_engine",
    }
    for holder, names in used.items():
        assert [name for name in names.split() if not hasattr(holder, name)] == []


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
    assert refused.value.true == "no NVIDIA GPU answers here, and TensorRT-RTX runs on nothing else"
    assert refused.value.fix.startswith("copy the artifact to the device and open it there")


def test_facts_for_the_doctor() -> None:
    for runtime in ("tensorrt", "tensorrt_rtx"):
        facts = runtimes.part(runtime, "facts")
        found = facts.describe()
        assert found["version"] == facts.installed()
        assert facts.runs_here("cuda:0") is (found["version"] is not None and found["gpus"] != "no GPU")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tf23": True}, "there is no build option 'tf23' = True; the nearest is 'tf32'"),
        ({"tf32": 1}, "there is no build option 'tf32' = 1"),
        ({"workspace_mb": True}, "there is no build option 'workspace_mb' = True"),
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


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStandIn]:
    """CUDA and TensorRT are replaced; nothing may be left when the test ends."""
    cuda = CudaStandIn()
    monkeypatch.setenv("VITEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", TensorRTStandIn(cuda))
    monkeypatch.setattr(engine, "installed", lambda package: "10.3.0")
    monkeypatch.setattr(session, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(isolation, "run_isolated", build)
    build.graphs.clear()
    yield cuda
    assert cuda.alive == 0


class _Build:
    """In place of the child process: notes what was built."""

    def __init__(self) -> None:
        self.graphs: list[tuple[str, bytes, BuildOptions]] = []
        self.result: bytes | Exception = plan(*SHAPE[:3], CONFIG.num_classes, LAYERS)

    def __call__(self, function: object, *arguments: Any, timeout_s: float) -> bytes:
        assert function is engine.build and timeout_s > 60
        self.graphs.append(arguments)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


build = _Build()


@pytest.fixture(autouse=True)
def _sound_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "result", plan(*SHAPE[:3], CONFIG.num_classes, LAYERS))


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def sums(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), -1).sum(axis=1, dtype=np.float32)


def test_an_inference_and_its_stages(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path)) as opened:
        logits, stages = opened.run_timed(images())
        np.testing.assert_array_equal(logits[:, 0], sums(images()))
        assert stages == (2_000_000, 2_000_000, 2_000_000), "the stand-in's clock: one copy, one inference, one copy"
        kept = logits.copy()
        opened.run(images(1))
        np.testing.assert_array_equal(logits, kept), "the caller's logits are the caller's"
        assert opened.info == {
            "runtime": "tensorrt",
            "version": "10.3.0",
            "device": "cuda:0 Stand-in",
            "sm": "8.7",
            "strongly_typed": True,
            "tf32": False,
        }


def test_asynchronous_answers_come_to_their_tickets(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path)) as opened:
        tickets = [opened.submit(images(seed)) for seed in range(4)]
        between = opened.run(images(9))
        for seed in (2, 0, 3, 1):
            np.testing.assert_array_equal(opened.collect(tickets[seed])[:, 0], sums(images(seed)))
        np.testing.assert_array_equal(between[:, 0], sums(images(9)))


def test_executed_layers_have_their_onnx_names_and_types(tmp_path: Path, cuda: CudaStandIn) -> None:
    with open_session(artifact(tmp_path)) as opened:
        assert opened.executed() == [
            Executed("blocks.0.attn.qkv", "gemm", "int8"),
            Executed("blocks.0.attn.qkv.bias", "gemm", "int8"),
            Executed("reformat", "Reformat", "fp16"),
        ]
        rounds = opened.profile(images(), repeats=3)
        assert [[(time.name, time.type, time.ns) for time in one] for one in rounds] == [
            [("__myl_Fc_1", "", 250_000), ("reformat", "fp16", 250_000)]
        ] * 3


def test_the_engine_is_built_once(tmp_path: Path, cuda: CudaStandIn) -> None:
    made = artifact(tmp_path)
    for _ in range(3):
        open_session(made).close()
    graph = made.graph_path.read_bytes()
    assert build.graphs == [("tensorrt", graph, BuildOptions(tf32=False))]
    open_session(made, OpenOptions(options={"tf32": True})).close()
    assert build.graphs[1:] == [("tensorrt", graph, BuildOptions(tf32=True))]


@pytest.mark.parametrize("damage", ["plan", "passport", "half"])
def test_an_engine_that_isnt_what_was_built_is_built_anew(tmp_path: Path, cuda: CudaStandIn, damage: str) -> None:
    made = artifact(tmp_path)
    open_session(made).close()
    (file,) = (tmp_path / "cache").rglob("engine.plan")
    passport = file.with_name("engine.json")
    assert json.loads(passport.read_bytes())["gpu"] == "Stand-in 8.7"
    if damage == "plan":
        file.write_bytes(file.read_bytes() + b" ")
    elif damage == "passport":
        passport.write_bytes(b"{")
    else:
        passport.unlink()
    open_session(made).close()
    assert len(build.graphs) == 2


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
    opened.submit(images())
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
    with pytest.raises(ArtifactError, match="the engine in the cache can't be loaded"):
        open_session(made, OpenOptions(options={"tf32": True}))
    build.result = plan(*SHAPE[:3], CONFIG.num_classes)
    sys.modules["tensorrt"].no_context = True
    with pytest.raises(ResourceError, match="no memory for the engine's activations"):
        open_session(made, OpenOptions(options={"workspace_mb": 1}))
    sys.modules["tensorrt"].no_context = False
    cuda.left = 16
    with pytest.raises(ResourceError, match="cudaMalloc: cudaErrorMemoryAllocation"):
        open_session(made, OpenOptions(options={"workspace_mb": 1}))
    assert cuda.alive == 0


def test_another_device_is_refused(tmp_path: Path, cuda: CudaStandIn) -> None:
    with pytest.raises(UsageError, match="the device is 'cpu'; vitedge opens the first that CUDA shows"):
        open_session(artifact(tmp_path), OpenOptions(device="cpu"))


def test_cuda_python_isnt_installed(tmp_path: Path, cuda: CudaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NotInstalledError, match="the package 'cuda-python' is not installed"):
        open_session(artifact(tmp_path))


def test_a_session_is_a_session(tmp_path: Path, cuda: CudaStandIn) -> None:
    opened = open_session(artifact(tmp_path))
    assert isinstance(opened, Session) and opened.batch == SHAPE[0]
    pictures = [image for seed in range(3) for image in images(seed)][:5]
    logits = list(opened.map_batches(pictures))
    np.testing.assert_array_equal(np.stack(logits)[:, 0], sums(np.stack(pictures)))
    opened.close()
