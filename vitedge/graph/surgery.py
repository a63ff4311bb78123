"""Small tools for ONNX graphs: read and write, producers and consumers, linear layers, multiply-accumulates.

Functions return new models and leave their argument alone, unless their docstring says otherwise.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from vitedge.core import system
from vitedge.errors import ModelError, UsageError

M = TypeVar("M", onnx.NodeProto, onnx.TensorProto)

MAX_BYTES = (1 << 31) - 1  # one protobuf message; larger models need external data, and aren't compact


def load(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file; external data is checked, read and put into the model.

    Raises:
        UsageError: no such file.
        ModelError: not ONNX, larger than 2 GB, or external data that leaves the folder, is a link, or out of range.
    """
    path = Path(path)
    action = f"read the ONNX file {path}"
    if not path.is_file():
        raise UsageError(action, "there is no such file", "check the name")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(action, "the file is larger than 2 GB", "vitedge is for compact models")
    model = parse(path.read_bytes(), action)
    _internalise(model, path.parent, action)
    return model


def parse(data: bytes, action: str = "read an ONNX model") -> onnx.ModelProto:
    """Parse an ONNX model from its bytes; external data isn't loaded.

    Raises:
        ModelError: these bytes are no ONNX model.
    """
    try:
        model = onnx.load_model_from_string(data)
        _decode(model)
    except Exception as error:  # protobuf's own, which has no type stubs
        raise ModelError(action, f"it is not an ONNX model: {error}", "export or download it again") from error
    if not model.graph.node or not model.opset_import or not model.graph.output:
        raise ModelError(action, "it holds no ONNX graph", "export or download it again")
    return model


def _decode(message: Any) -> None:
    """Read every text of a message: protobuf decodes texts late, and any of them may be invalid UTF-8."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _decode(part)
        elif field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):  # what protobuf gives where it can't decode
                    text.decode()


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return the model as one ONNX file; equal models give equal bytes.

    Raises:
        ModelError: it needs more than 2 GB.
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
        return data
    except Exception as error:  # protobuf's own, which has no type stubs
        raise ModelError("write an ONNX model", f"it does not fit one file: {error}", "use a smaller model") from error


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that shares nothing."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    return new


def copied(message: M) -> M:
    """Return a copy of a node or tensor that shares nothing."""
    new = type(message)()
    new.CopyFrom(message)
    return new


def write_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the model's nodes, in place; the new ones may be among the old."""
    new = [copied(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(new)


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return the model with these entries in its ``metadata_props``; other entries are kept."""
    new = copy(model)
    merged = {**get_metadata(model), **metadata}
    del new.metadata_props[:]
    for key, value in merged.items():
        new.metadata_props.add(key=key, value=value)
    return new


def get_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Return ``metadata_props`` as a dictionary."""
    return {entry.key: entry.value for entry in model.metadata_props}


def batch_size(model: onnx.ModelProto) -> int | None:
    """Return the first dimension of the first input; None while it is symbolic."""
    shape = model.graph.input[0].type.tensor_type.shape
    return shape.dim[0].dim_value if shape.dim and shape.dim[0].HasField("dim_value") else None


def pin_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return the model with the symbolic batch dimension of its inputs and outputs set to ``batch``.

    Raises:
        ModelError: the batch is fixed to another number already.
    """
    fixed = batch_size(model)
    if fixed is not None and fixed != batch:
        raise ModelError(f"pin the batch to {batch}", f"the graph was made for batch {fixed}", f"use batch {fixed}")
    new = copy(model)
    symbol = new.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*new.graph.input, *new.graph.output, *new.graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            unnamed = axis == 0 and not symbol and not dim.HasField("dim_value") and not dim.dim_param
            if unnamed or (symbol and dim.dim_param == symbol):
                dim.dim_value = batch
    return new


def pinned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model at batch 1 where its batch is symbolic, so that shapes are numbers; else the model itself."""
    return pin_batch(model, 1) if batch_size(model) is None else model


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constant tensors of the graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph's inputs without the constants that old exporters list among them."""
    constants = initializers(model)
    return [value for value in model.graph.input if value.name not in constants]


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that writes each tensor."""
    return {output: node for node in model.graph.node for output in node.output if output}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, in graph order; a node that reads it twice appears once."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                readers.setdefault(name, []).append(node)
    return readers


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute, or ``default`` where it is absent; strings are returned as ``str``."""
    for candidate in node.attribute:
        if candidate.name == name:
            value = onnx.helper.get_attribute_value(candidate)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return the values of a constant tensor.

    Raises:
        ModelError: its data doesn't fit its shape or type.
    """
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # to_array has no exceptions of its own
        raise ModelError(
            f"read the tensor '{tensor.name}'",
            f"its data does not fit its shape {list(tensor.dims)}: {error}",
            "export it again",
        ) from error


@dataclass(frozen=True)
class Linear:
    """A layer that multiplies by constant weights: MatMul, optionally with its bias Add, Gemm, or Conv."""

    name: str  # of the MatMul, Gemm or Conv node
    kind: Literal["linear", "conv"]
    input: str  # tensor read: [..., C_in], or [N, C_in, H, W] for a convolution
    output: str  # tensor written, after the bias: [..., C_out] or [N, C_out, H, W]
    weight: str  # initialiser
    bias: str | None  # initialiser
    channel_axis: int  # axis of the weight that runs over output channels: MatMul 1, Conv 0, Gemm 0 with transB
    node: onnx.NodeProto
    bias_node: onnx.NodeProto | None  # the Add that follows a MatMul


def linear_layers(model: onnx.ModelProto) -> list[Linear]:
    """Return every layer with constant weights, in graph order, in any graph (node names must be unique).

    A MatMul counts when its right operand is a constant matrix; the Add behind it is its bias when it adds one constant
    per output channel and nothing else reads the product.
    """
    constants, readers = initializers(model), consumers(model)
    outputs = {value.name for value in model.graph.output}
    layers: list[Linear] = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        weight = constants.get(node.input[1])
        if weight is None or node.input[0] in constants:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in constants else None
        if node.op_type == "Conv":
            layers.append(Linear(node.name, "conv", node.input[0], node.output[0], weight.name, bias, 0, node, None))
        elif node.op_type == "Gemm":
            axis = 0 if attribute(node, "transB", 0) else 1
            layers.append(
                Linear(node.name, "linear", node.input[0], node.output[0], weight.name, bias, axis, node, None)
            )
        elif node.op_type == "MatMul" and len(weight.dims) == 2:
            add = None if node.output[0] in outputs else _bias_add(node.output[0], weight.dims[1], readers, constants)
            output = node.output[0] if add is None else add.output[0]
            if add is not None:
                bias = add.input[1] if add.input[1] in constants else add.input[0]
            layers.append(Linear(node.name, "linear", node.input[0], output, weight.name, bias, 1, node, add))
    return layers


def _bias_add(
    tensor: str,
    channels: int,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
) -> onnx.NodeProto | None:
    nodes = readers.get(tensor, [])
    if len(nodes) != 1 or nodes[0].op_type != "Add":
        return None
    others = [constants[name] for name in nodes[0].input if name in constants]
    per_channel = others and list(others[0].dims)[-1:] == [channels] and math.prod(others[0].dims) == channels
    return nodes[0] if per_channel else None


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every tensor that ONNX shape inference finds, None for an unknown dimension.

    Raises:
        ModelError: the graph contradicts itself.
    """
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # inference errors, and any exception from malformed attributes
        raise ModelError(
            "infer the shapes of an ONNX graph", f"it is inconsistent: {error}", "export it again"
        ) from error
    inferred: dict[str, tuple[int | None, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            inferred[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return inferred


def macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return multiply-accumulates of each MatMul, Gemm and Conv node by name, at batch 1 where the batch is symbolic.

    Nodes whose shapes ONNX can't infer are absent.
    """
    inferred = shapes(pinned(model))
    work: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        left, right, out = (inferred.get(name) for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            depth = right[1:] if right else (None,)
        else:
            depth = (left[0 if attribute(node, "transA", 0) else -1],) if left else (None,)
        dims = (*(out or (None,)), *depth)
        if None not in dims:
            work[node.name] = math.prod(dim for dim in dims if dim is not None)
    return work


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initialisers and attributes, those of subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]  # protobuf's repeated fields have no public type
        for attr in node.attribute:
            if attr.HasField("t"):
                yield attr.t
            yield from attr.tensors
            for sparse in (*([attr.sparse_tensor] if attr.HasField("sparse_tensor") else []), *attr.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                yield from _graph_tensors(graph)


def _internalise(model: onnx.ModelProto, folder: Path, action: str) -> None:
    """Replace every reference to external data, in place, by the data itself."""
    total = 0
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        data = _external_bytes(folder, entries, tensor.name, action)
        total += len(data)
        if total > MAX_BYTES:
            raise ModelError(action, "its external data is larger than 2 GB", "vitedge is for compact models")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = data


def _external_bytes(folder: Path, entries: Mapping[str, str], tensor: str, action: str) -> bytes:
    """Return the bytes of one tensor, from a plain file inside ``folder``."""
    hint = "keep the data file beside the ONNX file, or export without external data"
    location = PurePosixPath(entries.get("location", ""))
    where = f"the data of tensor '{tensor}' lies in '{location}'"
    if location.is_absolute() or ".." in location.parts or not location.parts or "\\" in str(location):
        raise ModelError(action, f"{where}, outside the folder", hint)
    path = folder
    for part in location.parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(action, f"{where}, which is a link", hint)
    try:
        descriptor = os.open(path, system.flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
    except (OSError, ValueError) as error:
        raise ModelError(action, f"{where}, which can't be opened: {error}", hint) from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ModelError(action, f"{where}, which is not a plain file with one name", hint)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(status.st_size - offset)))
        except ValueError as error:
            raise ModelError(action, f"{where}, at an offset or length that is no number", hint) from error
        if offset < 0 or length < 0 or offset + length > status.st_size:
            raise ModelError(
                action, f"{where}, bytes {offset} to {offset + length}, and that file has {status.st_size}", hint
            )
        stream.seek(offset)
        return stream.read(length)
