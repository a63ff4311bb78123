"""Stand-ins for CUDA and TensorRT, in this process, that fail on misuse. They are honest about being none.

A stream is a list of work that runs when it's synchronised, so that reading too early reads old bytes. Memory is known
by its address: unknown or freed addresses, copies of another size, and leaks are errors. While a stream is captured its
work goes to a graph, and waiting for it is an error. A clock counts what the work costs: a copy or a graph 1, an
engine's kernels 10 each. An "engine" is a JSON text with its tensors; it answers with the sum of each picture's bytes
in class 0.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


class Error(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900


class Work(NamedTuple):
    cost: int
    run: Callable[[], None]


class CudaStandIn(ModuleType):
    """``cuda.bindings.runtime``, as far as sessions use it."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaHostAllocMapped = 2

    def __init__(self, *, memory: int = 1 << 20, pageable: bool = False) -> None:
        super().__init__("cuda.bindings.runtime")
        self.pageable = pageable  # copies from memory that isn't pinned are permitted
        self.left = memory
        self.memory: dict[int, tuple[Any, set[str]]] = {}  # address -> (bytes, who may use it)
        self.streams: dict[int, list[Work]] = {}
        self.events: dict[int, int | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}  # by stream
        self.clock = 0
        self.launches = 0
        self.gpu = SimpleNamespace(name=b"Stand-in\0\0", major=8, minor=7, integrated=0, totalGlobalMem=8 << 30)
        self.driver, self.runtime = 12060, 12060
        self.refuses_capture = False
        self._next = 1000
        self._queues = threading.RLock()  # one thread may wait for a stream while another one uses it

    @property
    def alive(self) -> int:
        """Things that were made and not destroyed."""
        return len(self.memory) + len(self.streams) + len(self.events) + len(self.graphs)

    def at(self, address: int, size: int, user: str) -> Any:
        if self.pageable and user == "host" and int(address) not in self.memory:
            return (ctypes.c_uint8 * size).from_address(int(address))
        assert int(address) in self.memory, "memory that isn't there, or no longer"
        memory, users = self.memory[int(address)]
        assert user in users, f"{user} memory expected, this is {users}"
        assert ctypes.sizeof(memory) == size, f"{size} bytes of {ctypes.sizeof(memory)}"
        return memory

    def enqueue(self, stream: int, cost: int, run: Callable[[], None]) -> None:
        assert int(stream) in self.streams, "a stream that isn't there, or no longer"
        with self._queues:
            self.capturing.get(int(stream), self.streams[int(stream)]).append(Work(cost, run))

    def _name(self) -> int:
        self._next += 1
        return self._next

    def _allocate(self, size: int, *users: str) -> tuple[Error, int | None]:
        if "device" in users and size > self.left:
            return Error.cudaErrorMemoryAllocation, None
        memory = (ctypes.c_uint8 * size)(*([0xAB] * size))
        self.memory[ctypes.addressof(memory)] = (memory, set(users))
        return Error.cudaSuccess, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> tuple[Error, int | None]:
        return self._allocate(size, "host")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int | None]:
        assert flags == self.cudaHostAllocMapped
        return self._allocate(size, "host", "device")

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> tuple[Error, int]:
        assert flags == 0 and self.memory[int(address)][1] == {"host", "device"}, "memory that isn't mapped"
        return Error.cudaSuccess, address

    def _release(self, address: int, user: str) -> tuple[Error]:
        assert not any(self.streams.values()), "memory freed while work is waiting"
        assert user in self.memory.pop(int(address))[1]
        return (Error.cudaSuccess,)

    def cudaFree(self, address: int) -> tuple[Error]:
        return self._release(address, "device")

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        return self._release(address, "host")

    def cudaStreamCreate(self) -> tuple[Error, int]:
        name = self._name()
        self.streams[name] = []
        return Error.cudaSuccess, name

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        assert not self.streams.pop(stream), "stream destroyed with work waiting"
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert stream not in self.capturing, "a stream that is captured can't be waited for"
        with self._queues:
            for work in self.streams[stream]:
                work.run()
                self.clock += work.cost
            self.streams[stream].clear()
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Error]:
        assert mode == "thread" and not self.streams[stream], "captured while work is waiting"
        if self.refuses_capture:
            return (Error.cudaErrorStreamCaptureUnsupported,)
        self.capturing[stream] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, int]:
        name = self._name()
        self.graphs[name] = self.capturing.pop(stream)
        return Error.cudaSuccess, name

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Error, int]:
        assert flags == 0
        name = self._name()
        self.graphs[name] = list(self.graphs[graph])
        return Error.cudaSuccess, name

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Error]:
        self.launches += 1
        work = self.graphs[graph]
        self.enqueue(stream, 1, lambda: [one.run() for one in work] and None)
        return (Error.cudaSuccess,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Error]:
        del self.graphs[graph]
        return (Error.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaEventCreate(self) -> tuple[Error, int]:
        name = self._name()
        self.events[name] = None
        return Error.cudaSuccess, name

    def cudaEventDestroy(self, event: int) -> tuple[Error]:
        del self.events[event]
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Error]:
        def record() -> None:
            self.events[event] = self.clock

        self.enqueue(stream, 0, record)
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, first: int, second: int) -> tuple[Error, float]:
        start, end = self.events[first], self.events[second]
        assert start is not None and end is not None, "events read before they were recorded"
        assert end >= start, "events of different inferences"
        return Error.cudaSuccess, float(end - start)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[Error]:
        to, of = ("device", "host") if kind == "in" else ("host", "device")
        destination, origin = self.at(target, size, to), self.at(source, size, of)
        self.enqueue(stream, 1, lambda: ctypes.memmove(destination, origin, size) and None)
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Error, Any]:
        assert index == 0
        return Error.cudaSuccess, self.gpu

    def cudaDriverGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, self.runtime


KERNEL = 10  # what one costs


def plan(batch: int, height: int, width: int, classes: int, layers: object = ()) -> bytes:
    """What the stand-in takes for an engine."""
    tensors = {"image": [batch, height, width, 3], "logits": [batch, classes]}
    return json.dumps({"tensors": tensors, "layers": layers}).encode()


class TensorRTStandIn(ModuleType):
    """``tensorrt``, as far as sessions and builds use it."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    __version__ = "10.3.0"

    class ILogger:
        INTERNAL_ERROR, ERROR = 0, 1

    class IProfiler:
        pass

    class IProgressMonitor:
        pass

    def __init__(self, cuda: CudaStandIn, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.cuda = cuda
        self.no_context = False
        self.loaded = 0  # engines
        self.config: Config | None = None  # of the last build
        self.fails = ""  # what the builder logs instead of building

    def Runtime(self, logger: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, data: bytes) -> Any:
        try:
            content = json.loads(data)
        except ValueError:
            return None
        self.loaded += 1
        tensors = content["tensors"]
        names = list(tensors)
        inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": content["layers"]}))
        engine = SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: "input" if name == "image" else "output",
            get_tensor_shape=tensors.__getitem__,
            create_engine_inspector=lambda: inspector,
            create_execution_context=lambda config=None: (
                None if self.no_context else Context(self.cuda, tensors, content["layers"], config)
            ),
        )
        if self.__name__ == "tensorrt_rtx":
            engine.create_runtime_config = RuntimeConfig
        return engine

    def Builder(self, logger: Any) -> Any:
        def built(network: object, config: Config) -> bytes | None:
            self.config = config
            if self.fails:
                logger.log(1, self.fails)
                return None
            config.progress_monitor.phase_start("all", "", 2)
            for step in range(2):
                assert config.progress_monitor.step_complete("all", step)
            config.progress_monitor.phase_finish("all")
            return plan(1, 4, 4, 2)

        return SimpleNamespace(
            create_network=lambda flags: flags, create_builder_config=Config, build_serialized_network=built
        )

    def OnnxParser(self, network: int, logger: object) -> Any:
        assert network == 1 << 1, "not strongly typed"
        return SimpleNamespace(parse=lambda graph: graph == b"a graph")


class Config:
    """A builder configuration that notes what was set."""

    def __init__(self) -> None:
        self.flags = {"TF32"}  # on, as TensorRT has it
        self.pools: dict[str, int] = {}
        self.timings = b""
        self.progress_monitor: Any = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: data + b"+timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data.startswith(b"foreign"):
            return False
        self.timings = cache.data
        return True

    def get_timing_cache(self) -> Any:
        return self.create_timing_cache(self.timings)


class RuntimeConfig:
    """TensorRT-RTX's: a cache of what it compiled when it ran."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_runtime_cache(self) -> Any:
        kernels: list[bytes] = []
        return SimpleNamespace(
            kernels=kernels, deserialize=lambda data: kernels.append(data) or True, serialize=lambda: b"kernels"
        )

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class Context:
    def __init__(
        self, cuda: CudaStandIn, tensors: dict[str, list[int]], layers: list[dict[str, Any]], config: Any
    ) -> None:
        self._cuda, self._tensors, self._layers = cuda, tensors, layers
        self._addresses: dict[str, int] = {}
        self._stream: int | None = None
        self.profiler: Any = None
        self.config = config

    def set_tensor_address(self, name: str, address: int) -> None:
        assert name in self._tensors
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert self._addresses.keys() == self._tensors.keys(), "executed before every tensor had its memory"
        captured = stream in self._cuda.capturing
        assert not captured or self._stream == stream, "the first execution of a context can't be captured"
        assert self._stream in (None, stream), "one context in two streams"
        assert not (captured and self.profiler), "a profiler sees nothing of a graph"
        self._stream = stream

        def run() -> None:
            shape, result = self._tensors["image"], self._tensors["logits"]
            pictures = np.frombuffer(self._cuda.at(self._addresses["image"], int(np.prod(shape)), "device"), np.uint8)
            size = int(np.prod(result)) * 4
            logits = np.frombuffer(self._cuda.at(self._addresses["logits"], size, "device"), np.float32).reshape(result)
            logits[:] = 0
            logits[:, 0] = pictures.reshape(shape[0], -1).sum(axis=1, dtype=np.float32)
            for layer in self._layers if self.profiler else []:
                self.profiler.report_layer_time(layer["Name"], 0.25)

        self._cuda.enqueue(stream, KERNEL * max(1, len(self._layers)), run)
        return True
