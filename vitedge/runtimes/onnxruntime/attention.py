"""Attention as one operator (domain ``com.microsoft``), without splits and transposes: in integers, or in float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import array, attribute, consumers, initializers, linear_layers, producers
from vitedge.quantization.rounding import QuantizedLayer
from vitedge.runtimes.onnxruntime.rewriter import Layers, Rewriter


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ) v over heads, behind one linear that makes q, k and v; the scale is in its weights."""

    qkv: str  # the linear's name
    heads: int
    query_key: int  # channels of a head's query and key
    value: int  # channels of a head's value
    products: tuple[str, str]  # names of the two MatMul nodes
    output: str  # tensor [N, T, heads · value]
    query_slice: tuple[str, ...]  # bounds of the Slice that takes the used queries; empty where all are

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Columns of the linear that are queries, keys and values."""
        return self.heads * self.query_key, self.heads * self.query_key, self.heads * self.value

    @property
    def unscaled(self) -> NDArray[np.float32]:
        """Of each column, what takes the scale query_key^-½ back out: the canonical weights have theirs already."""
        return np.repeat(np.array([self.query_key**0.5, 1, 1], np.float32), self.sizes)


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Every attention of the canonical form, in graph order; one that differs anywhere isn't among them.

    Some of the queries may do (:mod:`vitedge.graph.unused_tokens`).
    """
    readers, writers, constants = consumers(model), producers(model), initializers(model)
    linears = {linear.output: linear for linear in linear_layers(model) if linear.kind == "linear"}

    def only(tensor: str, operator: str) -> onnx.NodeProto:
        nodes = readers.get(tensor, [])
        if len(nodes) != 1 or nodes[0].op_type != operator:
            raise LookupError(tensor)
        return nodes[0]

    def transposed(tensor: str, perm: list[int]) -> str:
        node = only(tensor, "Transpose")
        if attribute(node, "perm") != perm:
            raise LookupError(tensor)
        return str(node.output[0])

    def parts(tensor: str, perm: list[int]) -> tuple[str, list[int]]:
        reshape = only(tensor, "Reshape")
        shape = array(constants[reshape.input[1]]).tolist()
        return transposed(reshape.output[0], perm), shape

    def queries(tensor: str) -> tuple[tuple[str, ...], str]:
        if all(node.op_type != "Slice" for node in readers.get(tensor, [])):
            return (), tensor
        node = only(tensor, "Slice")
        axes = constants.get(node.input[3]) if len(node.input) > 3 else None
        if axes is None or array(axes).tolist() != [1]:
            raise LookupError(tensor)
        return tuple(node.input[1:]), str(node.output[0])

    attentions_found = []
    for split in (node for node in model.graph.node if node.op_type == "Split" and len(node.output) == 3):
        try:
            linear = linears[split.input[0]]
            only(linear.output, "Split")
            query_slice, used = queries(split.output[0])
            q, shape = parts(used, [0, 2, 1, 3])
            k, k_shape = parts(split.output[1], [0, 2, 3, 1])
            v, v_shape = parts(split.output[2], [0, 2, 1, 3])
            scores = only(q, "MatMul")
            softmax = only(scores.output[0], "Softmax")
            context = only(softmax.output[0], "MatMul")
            joined = only(transposed(context.output[0], [0, 2, 1, 3]), "Reshape")
            width = array(constants[linear.weight]).shape[linear.channel_axis]
        except LookupError:
            continue
        heads, query_key = shape[-2:]
        products = (scores.name, context.name)
        found = Attention(linear.name, heads, query_key, v_shape[-1], products, joined.output[0], query_slice)
        same = shape == k_shape and shape[:3] == v_shape[:3] == [0, 0, found.heads] and width == sum(found.sizes)
        operands = list(scores.input) == [q, k] and list(context.input) == [softmax.output[0], v]
        sizes = [width // 3] * 3 if len(split.input) == 1 else array(constants[split.input[1]]).tolist()
        axes = attribute(split, "axis", 0) in (-1, 2) and attribute(softmax, "axis", -1) in (-1, 3)
        flat = array(constants[joined.input[1]]).tolist() == [0, 0, found.sizes[2]]
        cut = sizes == list(found.sizes)
        if same and operands and cut and axes and flat and writers[softmax.input[0]] is scores:
            attentions_found.append(found)
    return attentions_found


def quantized_attention(model: onnx.ModelProto, layers: Layers, *, threads: int = 1, batch: int = 1) -> onnx.ModelProto:
    """Every canonical attention whose qkv linear is among ``layers``: integers in the linear, float32 in its products.

    ``QAttention`` is both, without splitting and transposing in between, and gives each thread whole heads. Where
    these don't come out even, one linear each for q, k and v and ``MultiHeadAttention`` are faster, which shares out
    rows: with 197 tokens and 2 threads, three heads take 410 instead of 480 µs, and six 1,940 instead of 1,790. So are
    they where only some tokens ask: their queries alone are computed. And QAttention has one size for queries, keys and
    values; where values have more or fewer channels, MultiHeadAttention takes them.
    Nodes are called after the layers they compute: "+" stands between the names of several, "X/q" is a part of X.

    Args:
        model: the improved float graph.
        layers: what is in integers.
        threads: that will share the work.
        batch: pictures of an inference.
    """
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model)}
    fused = {attention.output: attention for attention in attentions(rewriter.model) if attention.qkv in layers}
    for node in rewriter.model.graph.node:
        attention = fused.get(node.output[0])
        if attention is None:
            rewriter.nodes.append(node)  # what the fused ones leave behind is dropped in the end
        elif _in_one(attention) and shares_evenly(batch * attention.heads, threads):
            _with_linear(rewriter, attention, layers[attention.qkv], linears[attention.qkv].input)
        else:
            _behind_linears(rewriter, attention, layers[attention.qkv], linears[attention.qkv].input)
    return rewriter.finish()


def _in_one(attention: Attention) -> bool:
    """Whether QAttention can compute it."""
    return not attention.query_slice and attention.query_key == attention.value


#: Fraction of the threads' time that may be lost to waiting for the one that has a head more.
UNEVEN = 0.1


def shares_evenly(heads: int, threads: int) -> bool:
    """Whether so many heads keep so many threads busy to the end."""
    return heads >= (1 - UNEVEN) * threads * -(-heads // threads)


def _with_linear(rewriter: Rewriter, attention: Attention, layer: QuantizedLayer, x: str) -> None:
    """As QAttention."""
    factor = attention.unscaled
    scale, zero_point = rewriter.grid(layer)
    inputs = [
        rewriter.quantize(layer, x, (scale, zero_point)),
        rewriter.constant(f"{layer.name}.weight.q", layer.weight),
        rewriter.constant(f"{layer.name}.bias.q", layer.bias * factor),
        scale,
        rewriter.constant(f"{layer.name}.weight.scale", layer.weight_scale * factor),
        "",  # no mask
        zero_point,
        rewriter.constant(f"{layer.name}.weight.zero_point", np.zeros(len(factor), np.int8)),
    ]
    name = "+".join((attention.qkv, *attention.products))
    rewriter.contrib("QAttention", name, *inputs, out=attention.output, num_heads=attention.heads)


def _behind_linears(rewriter: Rewriter, attention: Attention, layer: QuantizedLayer, x: str) -> None:
    """As three linears of the same quantized input, and MultiHeadAttention."""
    grid = rewriter.grid(layer)
    quantized, parts = rewriter.quantize(layer, x, grid), []
    ends = np.cumsum(attention.sizes)
    for name, width, end in zip("qkv", attention.sizes, ends, strict=True):
        columns = slice(end - width, end)
        part = replace(
            layer,
            name=f"{layer.name}/{name}",
            weight=layer.weight[:, columns],
            weight_scale=layer.weight_scale[columns],
            bias=layer.bias[columns],
        )
        x = quantized
        if name == "q" and attention.query_slice:
            x = rewriter.node("Slice", f"{part.name}.rows", quantized, *attention.query_slice)
        parts.append(rewriter.multiply(part, x, grid, part.weight, f"{part.name}.out"))
    extra = {"num_heads": attention.heads, "scale": 1.0}
    rewriter.contrib("MultiHeadAttention", "+".join(attention.products), *parts, out=attention.output, **extra)


def float_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every attention of all tokens as one ``Attention`` in float32, named and scaled as QAttention is."""
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model)}
    constants = initializers(rewriter.model)
    fused = {attention.output: attention for attention in attentions(rewriter.model) if not attention.query_slice}
    for node in rewriter.model.graph.node:
        attention = fused.get(node.output[0])
        if attention is None:
            rewriter.nodes.append(node)
            continue
        linear, factor = linears[attention.qkv], attention.unscaled
        weight = array(constants[linear.weight])
        matrix = weight if linear.channel_axis == 1 else weight.T
        bias = array(constants[linear.bias]).reshape(-1) if linear.bias else np.zeros(len(factor), np.float32)
        inputs = [
            linear.input,
            rewriter.constant(f"{attention.qkv}.matrix", (matrix * factor).astype(np.float32)),
            rewriter.constant(f"{attention.qkv}.bias.scaled", (bias * factor).astype(np.float32)),
        ]
        name = "+".join((attention.qkv, *attention.products))
        extra: dict[str, Any] = {"num_heads": attention.heads}
        if attention.query_key != attention.value:
            extra["qkv_hidden_sizes"] = attention.sizes
        rewriter.contrib("Attention", name, *inputs, out=attention.output, **extra)
    return rewriter.finish()
