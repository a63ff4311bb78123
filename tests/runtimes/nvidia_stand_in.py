"""Stand-ins for CUDA and TensorRT, in this process, that fail on misuse. They are honest about being none.

A stream is a list of work that runs when it's synchronised, so that reading too early reads old bytes. Memory is known
by its address: unknown or freed addresses, copies of another size, and leaks are errors. An "engine" is a JSON text
with its tensors; it answers with the sum of each picture's bytes in class 0.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Error(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class CudaStandIn(ModuleType):
    """``cuda.bindings.runtime``, as far as sessions use it."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")

    def __init__(self, *, memory: int = 1 << 20) -> None:
        super().__init__("cuda.bindings.runtime")
        self.left = memory
        self.memory: dict[int, tuple[Any, str]] = {}  # address -> (bytes, "host" or "device")
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, int | None] = {}
        self.clock = 0
        self._next = 1000

    @property
    def alive(self) -> int:
        """Things that were made and not destroyed."""
        return len(self.memory) + len(self.streams) + len(self.events)

    def at(self, address: int, size: int, kind: str) -> Any:
        memory, where = self.memory[int(address)]
        assert where == kind, f"{kind} memory expected, this is {where}"
        assert ctypes.sizeof(memory) == size, f"{size} bytes of {ctypes.sizeof(memory)}"
        return memory

    def _name(self) -> int:
        self._next += 1
        return self._next

    def _allocate(self, size: int, kind: str) -> tuple[Error, int | None]:
        if kind == "device" and size > self.left:
            return Error.cudaErrorMemoryAllocation, None
        memory = (ctypes.c_uint8 * size)(*([0xAB] * size))
        self.memory[ctypes.addressof(memory)] = (memory, kind)
        return Error.cudaSuccess, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> tuple[Error, int | None]:
        return self._allocate(size, "host")

    def _release(self, address: int, kind: str) -> tuple[Error]:
        assert not any(self.streams.values()), "memory freed while work is waiting"
        assert self.memory.pop(int(address))[1] == kind
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
        for work in self.streams[stream]:
            work()
            self.clock += 1
        self.streams[stream].clear()
        return (Error.cudaSuccess,)

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

        self.streams[stream].append(record)
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, first: int, second: int) -> tuple[Error, float]:
        start, end = self.events[first], self.events[second]
        assert start is not None and end is not None, "events read before they were recorded"
        assert not any(self.streams.values()), "events read before the stream was synchronised"
        return Error.cudaSuccess, float(end - start)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[Error]:
        to, of = ("device", "host") if kind == "in" else ("host", "device")
        destination, origin = self.at(target, size, to), self.at(source, size, of)
        self.streams[stream].append(lambda: ctypes.memmove(destination, origin, size) and None)
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Error, Any]:
        assert index == 0
        return Error.cudaSuccess, SimpleNamespace(name=b"Stand-in\0\0", major=8, minor=7)


def plan(batch: int, height: int, width: int, classes: int, layers: object = ()) -> bytes:
    """What the stand-in takes for an engine."""
    tensors = {"image": [batch, height, width, 3], "logits": [batch, classes]}
    return json.dumps({"tensors": tensors, "layers": layers}).encode()


class TensorRTStandIn(ModuleType):
    """``tensorrt``, as far as sessions use it."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    class ILogger:
        INTERNAL_ERROR, ERROR = 0, 1

    class IProfiler:
        pass

    def __init__(self, cuda: CudaStandIn) -> None:
        super().__init__("tensorrt")
        self.cuda = cuda
        self.no_context = False

    def Runtime(self, logger: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, data: bytes) -> Any:
        try:
            content = json.loads(data)
        except ValueError:
            return None
        tensors = content["tensors"]
        names = list(tensors)
        inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": content["layers"]}))
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: "input" if name == "image" else "output",
            get_tensor_shape=tensors.__getitem__,
            create_engine_inspector=lambda: inspector,
            create_execution_context=lambda: (
                None if self.no_context else Context(self.cuda, tensors, content["layers"])
            ),
        )


class Context:
    def __init__(self, cuda: CudaStandIn, tensors: dict[str, list[int]], layers: list[dict[str, Any]]) -> None:
        self._cuda, self._tensors, self._layers = cuda, tensors, layers
        self._addresses: dict[str, int] = {}
        self.profiler: Any = None

    def set_tensor_address(self, name: str, address: int) -> None:
        assert name in self._tensors
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        def run() -> None:
            shape, result = self._tensors["image"], self._tensors["logits"]
            pictures = np.frombuffer(self._cuda.at(self._addresses["image"], int(np.prod(shape)), "device"), np.uint8)
            size = int(np.prod(result)) * 4
            logits = np.frombuffer(self._cuda.at(self._addresses["logits"], size, "device"), np.float32).reshape(result)
            logits[:] = 0
            logits[:, 0] = pictures.reshape(shape[0], -1).sum(axis=1, dtype=np.float32)
            for layer in self._layers if self.profiler else []:
                self.profiler.report_layer_time(layer["Name"], 0.25)

        self._cuda.streams[stream].append(run)
        return True
