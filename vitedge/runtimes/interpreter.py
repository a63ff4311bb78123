"""Interpret the arithmetic of a typed standard graph on the CPU, in place of a runtime that isn't installed here.

Graph optimisations are off, so that Q/DQ is executed as written. ONNX Runtime has few half-precision kernels on CPUs:
it computes in float32 and takes back-to-back casts out, intermediate roundings with them. So half precision is made
explicit first: every operator computes in float32 and its result is rounded to the type that the graph gives it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, shape_inference

from vitedge.errors import ModelError, NotInstalledError
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import array, batch_size, copy, to_bytes
from vitedge.runtimes.onnxruntime import detect

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MOVING = (  # they round nothing
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
)
_BATCH = 16


def require(action: str) -> str:
    """Return the interpreter's name and version, "onnxruntime 1.31.1".

    Raises:
        NotInstalledError: onnxruntime is missing.
    """
    version = detect.installed()
    if version is None:
        raise NotInstalledError.for_extra(action, "onnxruntime", "host")
    return f"onnxruntime {version}"


class Interpreter:
    """A graph of standard operators, opened once and executed without fusions.

    Args:
        model: one input uint8 [N, h, w, 3], one output [N, classes]; N may be symbolic or fixed.
        optimized: let ONNX Runtime fuse; for float32 graphs, where only the last bits change.
        tensors: names of inner tensors [N, ...] that come out beside the logits.

    Raises:
        ModelError: ONNX Runtime can't load it; its reason is given.
        NotInstalledError: onnxruntime is missing.
    """

    def __init__(self, model: onnx.ModelProto, *, optimized: bool = False, tensors: Sequence[str] = ()) -> None:
        require("interpret a graph")
        runtime = detect.load()
        options = runtime.SessionOptions()
        level = runtime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self._fixed = batch_size(model)
        graph = widened(model)
        if tensors:
            graph = copy(graph)
            graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        with _model_errors():
            self._session = runtime.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run images; the last batch of a fixed N is padded.

        Args:
            images: uint8 [count, h, w, 3].

        Returns:
            The logits, float32 [count, classes], then each of the tensors, [count, ...].

        Raises:
            ModelError: ONNX Runtime can't run it; its reason is given.
        """
        size, name = self._fixed or _BATCH, self._session.get_inputs()[0].name
        batches = []
        with _model_errors():
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                padding = np.repeat(batch[-1:], self._fixed - len(batch) if self._fixed else 0, axis=0)
                outputs = self._session.run(None, {name: np.concatenate([batch, padding])})
                batches.append([output[: len(batch)] for output in outputs])
        return [np.concatenate(parts).astype(np.float32) for parts in zip(*batches, strict=True)]


@contextlib.contextmanager
def _model_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError("interpret a graph with ONNX Runtime", reason, "report this graph") from error


def run_graph(model: onnx.ModelProto, images: NDArray[np.uint8], *, optimized: bool = False) -> NDArray[np.float32]:
    """Return the logits of images, float32 [count, classes]; arguments and errors are those of :class:`Interpreter`."""
    return Interpreter(model, optimized=optimized).run(images)[0]


def nudged(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return a copy whose float32 constants are moved by about a unit in the last place, like sums in another order.

    Args:
        model: a graph of standard operators.
        seed: of the normal distribution that the moves are drawn from.
    """
    moved, rng = copy(widened(model)), np.random.default_rng(seed)
    for tensor in moved.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = array(tensor)
            factors = 1 + np.finfo(np.float32).eps * rng.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * factors).astype(np.float32), tensor.name))
    return moved


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which half-precision tensors are float32 tensors that hold half-precision values.

    Each operator that computes reads float32, accumulates in float32, and its result is rounded by a pair of casts.
    """
    types = _types(model)
    if not any(type_ in _HALF for type_ in types.values()):
        return model
    builder = GraphBuilder(model)
    graph = builder.model.graph
    for tensor in graph.initializer:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(numpy_helper.from_array(array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        builder.nodes.append(node)
        for index, name in enumerate(node.output):
            half = types.get(name)
            if half not in _HALF or node.op_type in _MOVING:
                continue
            raw, narrow = f"{name}.wide", f"{name}.narrow"
            node.output[index] = raw
            builder.node("Cast", f"{name}.round", raw, out=narrow, to=half)
            builder.node("Cast", f"{name}.widen", narrow, out=name, to=TensorProto.FLOAT)
        for attribute in node.attribute:
            if attribute.name in ("to", "output_dtype") and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
            elif attribute.HasField("t") and attribute.t.data_type in _HALF:
                attribute.t.CopyFrom(numpy_helper.from_array(array(attribute.t).astype(np.float32)))
    wide = builder.written()
    del graph.value_info[:]
    for value in graph.output:
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor that ONNX infers."""
    graph = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
