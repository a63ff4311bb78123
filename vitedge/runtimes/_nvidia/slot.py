"""One inference in flight: an execution context with its stream, events, memory and, if it's faster, a CUDA graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitedge.errors import ResourceError
from vitedge.runtimes._nvidia.driver import Cuda, Resources, buffer
from vitedge.runtimes.base import Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A more complicated launch mode is taken only if it's faster by this factor.
WORTH = 0.98
WARM, ROUNDS = 5, 20


class LaunchMode(NamedTuple):
    """A way to launch an inference."""

    zero_copy: bool  # the GPU reads and writes the host's pinned memory; no copies
    graph: bool  # the engine's kernels are launched as one captured CUDA graph

    @property
    def description(self) -> str:
        """The mode in words: ``zero copy, CUDA graph``."""
        return (
            ", ".join(word for word, is_so in zip(("zero copy", "CUDA graph"), self, strict=True) if is_so) or "plain"
        )


class Tensors(NamedTuple):
    """Names and shapes of the input and output tensors."""

    source: str
    inputs: tuple[int, ...]  # uint8 [batch, h, w, 3]
    target: str
    outputs: tuple[int, ...]  # float32 [batch, classes]


class Slot:
    """All resources of one inference, allocated once.

    Args:
        cuda: the driver.
        make_context: a new execution context of the engine, or None where the GPU has no memory for one.
        tensors: of the engine.
        mode: how it's launched.
        action: for error texts.

    Raises:
        ResourceError: GPU memory, or a graph that can't be captured.
    """

    def __init__(
        self, cuda: Cuda, make_context: Callable[[], Any], tensors: Tensors, mode: LaunchMode, action: str
    ) -> None:
        self.mode, self._cuda, self._action = mode, cuda, action
        self._resources = Resources(cuda)
        self._waiting = False
        self.context: Any = None
        self._launch: Any = None
        try:
            self.context = make_context()
            if self.context is None:
                raise ResourceError(action, "the GPU has no memory for the engine's activations", "lower the batch")
            self._stream = self._resources.keep("cudaStreamDestroy", cuda("cudaStreamCreate"))
            self._events = [self._resources.keep("cudaEventDestroy", cuda("cudaEventCreate")) for _ in range(4)]
            self._input = buffer(cuda, self._resources, tensors.inputs, np.uint8, zero_copy=mode.zero_copy)
            self._output = buffer(cuda, self._resources, tensors.outputs, np.float32, zero_copy=mode.zero_copy)
            self.context.set_tensor_address(tensors.source, self._input.device)
            self.context.set_tensor_address(tensors.target, self._output.device)
            if mode.graph:
                self._capture()
        except BaseException:
            self.close()
            raise

    def _capture(self) -> None:
        """Capture the engine's work in a CUDA graph, which one launch then starts."""
        cuda, stream = self._cuda, self._stream
        self._execute()  # the first one of a context does work that can't be captured
        cuda("cudaStreamSynchronize", stream)
        cuda("cudaStreamBeginCapture", stream, cuda.names.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._execute()
        finally:
            recorded = cuda("cudaStreamEndCapture", stream)
        graph = self._resources.keep("cudaGraphDestroy", recorded)
        self._launch = self._resources.keep("cudaGraphExecDestroy", cuda("cudaGraphInstantiate", graph, 0))

    def _execute(self) -> None:
        if self._launch is not None:
            self._cuda("cudaGraphLaunch", self._launch, self._stream)
        elif not self.context.execute_async_v3(int(self._stream)):
            raise ResourceError(self._action, "the inference couldn't be started", "run it with vitedge --debug")

    def start(self, images: NDArray[np.uint8], *, captured: bool = True) -> None:
        """Copy uint8 [batch, h, w, 3] into pinned memory and start, after waiting for work that is still running.

        Args:
            images: checked by the caller.
            captured: False: the engine itself, although there is a graph (a profiler sees nothing of a graph).
        """
        self.wait()
        cuda, stream, kinds = self._cuda, self._stream, self._cuda.names.cudaMemcpyKind
        np.copyto(self._input.host, images)
        self._waiting = True
        cuda("cudaEventRecord", self._events[0], stream)
        if self._input.copied:
            host, size = self._input.host.ctypes.data, self._input.host.nbytes
            cuda("cudaMemcpyAsync", self._input.device, host, size, kinds.cudaMemcpyHostToDevice, stream)
        cuda("cudaEventRecord", self._events[1], stream)
        launch, self._launch = self._launch, self._launch if captured else None
        try:
            self._execute()
        finally:
            self._launch = launch
        cuda("cudaEventRecord", self._events[2], stream)
        if self._output.copied:
            host, size = self._output.host.ctypes.data, self._output.host.nbytes
            cuda("cudaMemcpyAsync", host, self._output.device, size, kinds.cudaMemcpyDeviceToHost, stream)
        cuda("cudaEventRecord", self._events[3], stream)

    def wait(self) -> NDArray[np.float32]:
        """Wait for the inference and return its logits, in this slot's memory."""
        self._settle()
        return self._output.host

    def synchronize(self) -> None:
        """Wait until the stream is empty. Any thread may call it; the slot's own state doesn't change."""
        self._cuda("cudaStreamSynchronize", self._stream)

    def _settle(self) -> None:
        if self._waiting:
            self.synchronize()
            self._waiting = False

    def stages(self) -> Stages:
        """Return the nanoseconds between CUDA's events of the last inference; without copies there is one stage."""
        first, compute, last = (
            round(self._cuda("cudaEventElapsedTime", *pair) * 1e6) for pair in itertools.pairwise(self._events)
        )
        return Stages(None, compute, None) if self.mode.zero_copy else Stages(first, compute, last)

    def close(self) -> None:
        """Release everything, after waiting for work in flight, whose memory is released."""
        try:
            self._settle()
        finally:
            self._launch = self.context = None
            self._resources.release()


def measured(slots: Sequence[Slot], images: NDArray[np.uint8]) -> list[int]:
    """Return the median nanoseconds of one whole inference in each slot, interleaved."""
    times: list[list[int]] = [[] for _ in slots]
    for number in range(WARM + ROUNDS):
        for slot, kept in zip(slots, times, strict=True):
            start = perf_counter_ns()
            slot.start(images)
            slot.wait()
            if number >= WARM:
                kept.append(perf_counter_ns() - start)
    return [round(float(np.median(kept))) for kept in times]


def fastest(launch_modes: Sequence[LaunchMode], times: Sequence[int]) -> int:
    """Return the index of the mode to take: the simplest one, unless another is significantly faster."""
    best = min(range(len(launch_modes)), key=lambda i: times[i])
    return best if times[best] < WORTH * times[0] else 0
