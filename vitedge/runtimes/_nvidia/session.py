"""A session on an NVIDIA GPU, for TensorRT and TensorRT-RTX alike.

Opening looks for the engine in the cache, by artifact, package version and GPU; where there is none it's built once
from the artifact's ONNX file. One stream, one execution context, device and pinned host memory allocated once; the
stages are timed by CUDA events.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge import isolation
from vitedge.artifact import Artifact
from vitedge.catalogue import cache_folder
from vitedge.errors import ArtifactError, NotInstalledError, ResourceError, UsageError, nearest
from vitedge.files import sha256, write_atomic
from vitedge.hardware import gpus
from vitedge.runtimes._nvidia import engine
from vitedge.runtimes.contract import Executed, LayerTime, OpenOptions, Stages
from vitedge.target import Option

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUILD_TIMEOUT_S = 3600.0  # small boards take many minutes
_BUILD_KEYS = {"tf32": bool, "optimization_level": int, "workspace_mb": int}
_TYPE = re.compile(r"\b(fp32|float|fp16|half|bf16|int8|fp8)\b", re.IGNORECASE)
_WORDS = {"float": "fp32", "half": "fp16"}
_WIDTHS = ("fp8", "int8", "fp16", "bf16", "fp32")


def read_contract(artifact: Artifact) -> dict[str, str] | None:
    """The preprocessing contract's copy in the ONNX file's metadata; None where the package onnx isn't here."""
    try:
        from vitedge.graph.surgery import get_metadata, parse
    except ImportError:  # a device needs no onnx
        return None
    return get_metadata(parse(artifact.graph_path.read_bytes(), f"read {artifact.graph_path}")) or None


def open_backend(package: str, version: str, artifact: Artifact, options: OpenOptions) -> TensorRTBackend:
    """Open an artifact on this machine's GPU.

    Raises:
        NotInstalledError: the package or cuda-python isn't here.
        ResourceError: no GPU, or not enough of its memory.
        UsageError: a device other than "cuda:0", or an option that TensorRT hasn't.
        ArtifactError: the engine can't be built or loaded.
    """
    asked = f"open the artifact {artifact.path}"
    trt = engine.load(package, asked)
    device = options.device or artifact.manifest.target.device
    if device != "cuda:0":
        raise UsageError(asked, f"the device is '{device}'; vitedge opens the first that CUDA shows", "use cuda:0")
    build = build_options({**artifact.manifest.runtime_options, **options.options}, asked)
    if not gpus():
        raise ResourceError(
            asked,
            f"no NVIDIA GPU answers here, and {engine.WORDS[package]} runs on nothing else",
            "copy the artifact to the device and open it there; its engine is built on first opening",
        )
    cuda = Cuda(asked, engine.EXTRAS[package])
    gpu = cuda("cudaGetDeviceProperties", 0)
    name, sm = gpu.name.decode().strip("\0"), f"{gpu.major}.{gpu.minor}"
    plan = cached_engine(package, version, artifact, f"{name} {sm}", build, asked)
    info: dict[str, Option] = {
        "runtime": package,
        "version": version,
        "device": f"{device} {name}",
        "sm": sm,
        "strongly_typed": True,
        "tf32": build.tf32,
    }
    return TensorRTBackend(trt, cuda, plan, artifact, info)


def build_options(options: Mapping[str, Option], asked: str) -> engine.BuildOptions:
    """The options of a manifest (and of the caller) as what a build takes.

    Raises:
        UsageError: an unknown option, a value of another type, or a graph that isn't strongly typed.
    """
    settings = {key: value for key, value in options.items() if key != "strongly_typed"}
    for key, value in settings.items():
        if key not in _BUILD_KEYS or type(value) is not _BUILD_KEYS[key]:
            raise UsageError(
                asked,
                f"there is no build option '{key}' = {value!r}{nearest(key, _BUILD_KEYS)}",
                f"use {', '.join(f'{name} ({kind.__name__})' for name, kind in _BUILD_KEYS.items())}",
            )
    if options.get("strongly_typed") is not True:
        raise UsageError(asked, "its graph isn't meant to be strongly typed", "export it again")
    return engine.BuildOptions(**settings)  # type: ignore[arg-type]  # checked just above


def cached_engine(
    package: str, version: str, artifact: Artifact, hardware: str, build: engine.BuildOptions, asked: str
) -> bytes:
    """The engine for this artifact, package version, GPU and options: from the cache, or built into it.

    An engine is taken from the cache only with the digest that was noted when it was built.

    Raises:
        ArtifactError, ResourceError: see :func:`vitedge.runtimes._nvidia.engine.build`; a crash of the builder too.
    """
    folder = artifact.cache(version, json.dumps([package, hardware, asdict(build)]))
    plan_file, passport_file = folder / "engine.plan", folder / "engine.json"
    try:
        plan = plan_file.read_bytes()
        if json.loads(passport_file.read_bytes())["sha256"] == sha256(plan):
            return plan
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or half a cache: build
    graph = artifact.graph_path.read_bytes()
    try:
        plan = isolation.run_isolated(engine.build, package, graph, build, timeout_s=BUILD_TIMEOUT_S)
    except isolation.ChildError as error:
        raise ArtifactError(
            asked, f"building the engine with {engine.WORDS[package]} {version}: {error}", "export in another precision"
        ) from error
    passport = {"sha256": sha256(plan), "package": package, "version": version, "gpu": hardware, **asdict(build)}
    write_atomic(plan_file, plan, asked)
    write_atomic(passport_file, json.dumps(passport, indent=2).encode(), asked)
    return plan


class Cuda:
    """``cuda("cudaMalloc", 64)``: the CUDA runtime's functions, whose error codes become exceptions."""

    def __init__(self, asked: str, extra: str) -> None:
        try:
            self.names: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise NotInstalledError.for_extra(asked, "cuda-python", extra) from error
        self._asked = asked

    def __call__(self, function: str, *arguments: Any) -> Any:
        code, *values = getattr(self.names, function)(*arguments)
        if code != self.names.cudaError_t.cudaSuccess:
            raise ResourceError(self._asked, f"{function}: {code.name}", "free GPU memory, or check the driver")
        return values[0] if values else None


class TensorRTBackend:
    """One engine, one context, one stream. See :class:`vitedge.runtimes.contract.Backend`."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, artifact: Artifact, info: Mapping[str, Option]) -> None:
        self.batch = artifact.manifest.batch
        self.info = info
        self._trt, self._cuda = trt, cuda
        self._free: list[tuple[str, Any]] = []  # what to call with what, last first, when closing
        self._tickets = itertools.count()
        self._pending: int | None = None
        self._done: dict[int, NDArray[np.float32]] = {}
        self._asked = f"open the artifact {artifact.path}"
        height, width = artifact.manifest.preprocessing.size
        try:
            self._open(plan, (self.batch, height, width, 3), (self.batch, len(artifact.manifest.classes)))
        except BaseException:
            self.close()
            raise

    def _open(self, plan: bytes, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        trt, cuda = self._trt, self._cuda
        self._runtime = trt.Runtime(engine.logger(trt))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ArtifactError(
                self._asked,
                "the engine in the cache can't be loaded",
                f"delete {cache_folder() / 'artifacts'}, and open again",
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = [self._engine.get_tensor_mode(name) for name in names]
        if sorted(mode == trt.TensorIOMode.INPUT for mode in modes) != [False, True]:
            raise ArtifactError(self._asked, f"the engine has the tensors {', '.join(names)}", "export it again")
        source = names[modes.index(trt.TensorIOMode.INPUT)]
        target = names[modes.index(trt.TensorIOMode.OUTPUT)]
        for name, shape in ((source, inputs), (target, outputs)):
            if tuple(self._engine.get_tensor_shape(name)) != shape:
                true = f"the engine's '{name}' is {list(self._engine.get_tensor_shape(name))}; expected {list(shape)}"
                raise ArtifactError(self._asked, true, "export it again")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ResourceError(self._asked, "the GPU has no memory for the engine's activations", "lower the batch")
        self._stream = self._keep("cudaStreamDestroy", cuda("cudaStreamCreate"))
        self._events = [self._keep("cudaEventDestroy", cuda("cudaEventCreate")) for _ in range(4)]
        self._input, self._device_input = self._buffers(inputs, np.uint8)
        self._output, self._device_output = self._buffers(outputs, np.float32)
        self._context.set_tensor_address(source, int(self._device_input))
        self._context.set_tensor_address(target, int(self._device_output))

    def _keep(self, release: str, thing: Any) -> Any:
        self._free.append((release, thing))
        return thing

    def _buffers(self, shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[NDArray[Any], Any]:
        """A pinned array on the host, and device memory of the same size."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        pinned = self._keep("cudaFreeHost", self._cuda("cudaMallocHost", size))
        pages = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pinned)))
        return pages.view(dtype).reshape(shape), self._keep("cudaFree", self._cuda("cudaMalloc", size))

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """See the contract; the stages are CUDA events' times."""
        self._settle()
        self._enqueue(images)
        self._cuda("cudaStreamSynchronize", self._stream)
        pairs = itertools.pairwise(self._events)
        return self._output, Stages(*(round(self._cuda("cudaEventElapsedTime", *pair) * 1e6) for pair in pairs))

    def _enqueue(self, images: NDArray[np.uint8]) -> None:
        cuda, stream, kinds = self._cuda, self._stream, self._cuda.names.cudaMemcpyKind
        np.copyto(self._input, images)
        cuda("cudaEventRecord", self._events[0], stream)
        to_device = kinds.cudaMemcpyHostToDevice
        cuda("cudaMemcpyAsync", self._device_input, self._input.ctypes.data, self._input.nbytes, to_device, stream)
        cuda("cudaEventRecord", self._events[1], stream)
        if not self._context.execute_async_v3(int(stream)):
            raise ResourceError(self._asked, "the inference couldn't be started", "run it with vitedge --debug")
        cuda("cudaEventRecord", self._events[2], stream)
        to_host = kinds.cudaMemcpyDeviceToHost
        cuda("cudaMemcpyAsync", self._output.ctypes.data, self._device_output, self._output.nbytes, to_host, stream)
        cuda("cudaEventRecord", self._events[3], stream)

    def submit(self, images: NDArray[np.uint8]) -> int:
        """See the contract; one inference is in flight at a time."""
        self._settle()
        self._enqueue(images)
        self._pending = next(self._tickets)
        return self._pending

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """See the contract."""
        if ticket == self._pending:
            self._settle()
        return self._done.pop(ticket)

    def _settle(self) -> None:
        """Wait for what is in flight, and keep its answer: the buffers are needed again."""
        if self._pending is not None:
            self._cuda("cudaStreamSynchronize", self._stream)
            self._done[self._pending] = self._output.copy()
            self._pending = None

    def executed(self) -> list[Executed]:
        """The engine's layers under the names of the ONNX nodes in them, with the narrowest type they read."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return [node for layer in json.loads(text)["Layers"] for node in engine_layer(layer)]

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Per-layer times, by a profiler attached to a context of its own run."""
        self._settle()
        types = {node.name: node for node in self.executed()}
        rounds: list[list[LayerTime]] = []

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]  # the module has no stubs
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, name: str, ms: float) -> None:
                known = types.get(name, Executed(name, "", ""))
                rounds[-1].append(LayerTime(name, known.operator, known.type, round(ms * 1e6)))

        self._context.profiler = Profiler(self._trt)
        try:
            for _ in range(repeats):
                rounds.append([])
                self._enqueue(images)
                self._cuda("cudaStreamSynchronize", self._stream)
        finally:
            self._context.profiler = None
        return rounds

    def close(self) -> None:
        """See the contract; work in flight is waited for, since its memory goes."""
        self._settle()
        self._context = self._engine = self._runtime = None
        self._input = self._output = np.empty(0)
        while self._free:
            self._cuda(*self._free.pop())


def engine_layer(layer: Mapping[str, Any]) -> list[Executed]:
    """One layer of the engine inspector's JSON, as the ONNX nodes it was fused from."""
    formats = [str(tensor.get("Format/Datatype", "")) for tensor in layer.get("Inputs", []) or layer.get("Outputs", [])]
    words = {word.lower() for text in formats for word in _TYPE.findall(text)}
    found = {_WORDS.get(word, word) for word in words}
    narrowest = next((name for name in _WIDTHS if name in found), "")
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", ""))) or [str(layer.get("Name", ""))]
    return [Executed(node, str(layer.get("LayerType", "")), narrowest) for node in nodes]
