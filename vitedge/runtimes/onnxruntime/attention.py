"""Attention as one operator (domain ``com.microsoft``), without splits and transposes: in integers, or in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import Linear, array, initializers, linear_layers
from vitedge.quantization.rounding import QuantizedLayer
from vitedge.runtimes.attention import Attention, attentions
from vitedge.runtimes.onnxruntime.rewriter import Layers, Rewriter


def _behind_linear(attention: Attention, linears: Mapping[str, Linear]) -> bool:
    """Whether a linear with constant weights computes the tensor that is cut into q, k and v."""
    return attention.qkv in linears and linears[attention.qkv].output == attention.packed


def unscaled(attention: Attention) -> NDArray[np.float32]:
    """Return each column's factor that removes the scale query_key^-½, which the canonical weights contain."""
    return np.repeat(np.array([attention.query_key**0.5, 1, 1], np.float32), attention.sizes)


def quantized_attention(model: onnx.ModelProto, layers: Layers, *, threads: int = 1, batch: int = 1) -> onnx.ModelProto:
    """Rewrite every canonical attention whose qkv linear is among ``layers``: integer linear, float32 products.

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
    fused = {
        attention.output: attention
        for attention in attentions(rewriter.model)
        if attention.qkv in layers and _behind_linear(attention, linears)
    }
    for node in rewriter.model.graph.node:
        attention = fused.get(node.output[0])
        if attention is None:
            rewriter.nodes.append(node)  # nodes that fusing made unused are dropped at the end
        elif _in_one(attention) and shares_evenly(batch * attention.heads, threads):
            _with_linear(rewriter, attention, layers[attention.qkv], linears[attention.qkv].input)
        else:
            _behind_linears(rewriter, attention, layers[attention.qkv], linears[attention.qkv].input)
    return rewriter.finish()


def _in_one(attention: Attention) -> bool:
    """Whether one QAttention can compute it."""
    return not attention.query_slice and attention.query_key == attention.value


#: Fraction of the threads' time that may be lost to waiting for the one that has a head more.
UNEVEN = 0.1


def shares_evenly(heads: int, threads: int) -> bool:
    """Whether this number of heads keeps all threads busy to the end."""
    return heads >= (1 - UNEVEN) * threads * -(-heads // threads)


def _with_linear(rewriter: Rewriter, attention: Attention, layer: QuantizedLayer, x: str) -> None:
    """Compute the attention and its linear as QAttention."""
    factor = unscaled(attention)
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
    """Compute the attention as three linears of the same quantized input, and MultiHeadAttention."""
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
    """Rewrite every attention of all tokens as one ``Attention`` in float32, named and scaled as QAttention is."""
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model)}
    constants = initializers(rewriter.model)
    fused = {
        attention.output: attention
        for attention in attentions(rewriter.model)
        if _behind_linear(attention, linears) and not attention.query_slice
    }
    for node in rewriter.model.graph.node:
        attention = fused.get(node.output[0])
        if attention is None:
            rewriter.nodes.append(node)
            continue
        linear, factor = linears[attention.qkv], unscaled(attention)
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
