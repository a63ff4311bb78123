"""Give heads the form that TensorRT fuses: queries, keys and values of one size.

NVIDIA's page on fused attention (:data:`PAGE`) gives queries, keys and values one head size; in half precision its
kernels read rows of 16 bytes, so that it's a multiple of 8. Blocks that were shrunk may have others. Their narrower
channels get zeros, behind quantization, in the constants of the linears around: the function is the same, and a few
columns more cost less than the products of an attention that isn't fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import Index, prune
from vitedge.graph.surgery import attribute
from vitedge.runtimes.attention import Attention, attentions

PAGE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html"
STEP = 8  # channels of a row of 16 bytes


class _Constant(NamedTuple):
    """A constant that runs over channels."""

    node: onnx.NodeProto
    input: int  # which of the node's
    axis: int
    fill: float  # for a channel of zeros


def widened(model: onnx.ModelProto) -> dict[str, str]:
    """Return the reason why the products of some attentions get zero channels, by the products' names."""
    reasons: dict[str, str] = {}
    for attention in attentions(model):
        size = _size(attention)
        if not attention.query_key == attention.value == size:
            old = f"{attention.query_key} and {attention.value} channels"
            reason = f"heads of {old} get zero channels up to {size}, as TensorRT fuses heads of one size"
            reasons |= dict.fromkeys(attention.products, reason)
    return reasons


def equal_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same function with each head's queries, keys and values padded to one multiple of :data:`STEP`.

    Only attention of the canonical form changes, and only where nothing but linears, roundings and channels' own shifts
    and scales stands around it.
    """
    builder = GraphBuilder(model)
    index = Index(builder.model)
    nodes = {node.name: node for node in builder.model.graph.node}
    for attention in attentions(builder.model):
        size, heads = _size(attention), attention.heads
        inner = list(_makers(index, nodes, attention))
        outer = list(_readers(index, attention.output)) if attention.value < size else []
        if attention.query_key == attention.value == size or not inner or None in outer:
            continue
        packed = [attention.query_key] * (2 * heads) + [attention.value] * heads
        for constant in inner:
            _widen(builder, index, constant, packed, size)
        for each in outer:
            assert each is not None
            _widen(builder, index, each, [attention.value] * heads, size)
        (split,) = index.consumers[attention.packed]
        split.input[1:] = [builder.integers(f"{attention.qkv}.equal.sizes", [heads * size] * 3)]
        for name in attention.reshapes[:3]:
            nodes[name].input[1] = builder.integers(f"{name}.equal.shape", [0, 0, heads, size])
        joined = nodes[attention.reshapes[3]]
        joined.input[1] = builder.integers(f"{joined.name}.equal.shape", [0, 0, heads * size])
    prune(builder.model)
    return builder.model


def _size(attention: Attention) -> int:
    """Return the least size that all fit."""
    return -(-max(attention.query_key, attention.value) // STEP) * STEP


def _makers(index: Index, nodes: dict[str, onnx.NodeProto], attention: Attention) -> Iterator[_Constant]:
    """Yield the constants over the output channels of the linear in front: its weights and bias. Nothing for a Gemm."""
    linear, last = nodes[attention.qkv], index.producers[attention.packed]
    place = 0 if last.input[0] in index.constants else 1
    biased = last is not linear
    if linear.op_type != "MatMul" or (biased and list(index.constants[last.input[place]].dims)[-1:] in ([], [1])):
        return
    yield from _weights(index, linear, 1)
    if biased:
        yield _Constant(last, place, -1, 0.0)


def _readers(index: Index, tensor: str) -> Iterator[_Constant | None]:
    """Yield the constants over the input channels behind; None where another operator reads the tensor."""
    if tensor in index.outputs:
        yield None
    for node in index.consumers.get(tensor, []):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _readers(index, node.output[0])
        elif node.op_type == "MatMul" and node.input[0] == tensor:
            yield from _weights(index, node, 0)
        elif node.op_type in ("Sub", "Mul") and node.input[1] in index.constants:  # of an improvement
            if max(index.constants[node.input[1]].dims, default=1) > 1:
                yield _Constant(node, 1, -1, 0.0)
            yield from _readers(index, node.output[0])
        else:
            yield None


def _weights(index: Index, linear: onnx.NodeProto, axis: int) -> Iterator[_Constant]:
    """Yield the weights of a MatMul, and its dequantization constants where they are per channel of this axis."""
    dequantize = index.producers.get(linear.input[1])
    if dequantize is None:
        yield _Constant(linear, 1, axis, 0.0)
        return
    yield _Constant(dequantize, 0, axis, 0.0)
    if attribute(dequantize, "axis", 1) == axis:
        for place, fill in ((1, 1.0), (2, 0.0)):
            if len(dequantize.input) > place and max(index.constants[dequantize.input[place]].dims, default=1) > 1:
                yield _Constant(dequantize, place, 0, fill)


def _widen(builder: GraphBuilder, index: Index, constant: _Constant, widths: list[int], size: int) -> None:
    """Give the node another constant, in which each of these groups of channels has ``size``."""
    node, place, axis, fill = constant
    old = index.constant(node.input[place])
    assert old is not None
    values: NDArray[np.generic] = np.moveaxis(old, axis, 0)
    new = np.full((len(widths) * size, *values.shape[1:]), fill).astype(old.dtype)
    start = 0
    for group, width in enumerate(widths):
        new[group * size : group * size + width] = values[start : start + width]
        start += width
    node.input[place] = builder.constant(f"{node.input[place]}.equal", np.moveaxis(new, 0, axis))
