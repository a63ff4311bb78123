"""Attention as one operator (domain ``com.microsoft``), without splits and transposes: in integers, or in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from vitedge.graph.surgery import array, attribute, consumers, initializers, linear_layers, producers
from vitedge.runtimes.onnxruntime.rewriter import CONTRIB, Layers, Rewriter


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ) v over heads, behind one linear that makes q, k and v; the scale is in its weights."""

    qkv: str  # the linear's name
    heads: int
    head_dim: int
    products: tuple[str, str]  # names of the two MatMul nodes
    output: str  # tensor [N, T, heads · head_dim]


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Every attention of the canonical form, in graph order; one that differs anywhere isn't among them."""
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

    found = []
    for split in (node for node in model.graph.node if node.op_type == "Split" and len(node.output) == 3):
        try:
            linear = linears[split.input[0]]
            only(linear.output, "Split")
            q, shape = parts(split.output[0], [0, 2, 1, 3])
            k, k_shape = parts(split.output[1], [0, 2, 3, 1])
            v, v_shape = parts(split.output[2], [0, 2, 1, 3])
            scores = only(q, "MatMul")
            softmax = only(scores.output[0], "Softmax")
            context = only(softmax.output[0], "MatMul")
            joined = only(transposed(context.output[0], [0, 2, 1, 3]), "Reshape")
            width = array(constants[linear.weight]).shape[linear.channel_axis]
        except LookupError:
            continue
        heads, head_dim = shape[-2:]
        same = shape == k_shape == v_shape and shape[:2] == [0, 0] and width == 3 * heads * head_dim
        operands = list(scores.input) == [q, k] and list(context.input) == [softmax.output[0], v]
        sizes = len(split.input) == 1 or set(array(constants[split.input[1]]).tolist()) == {width // 3}
        axes = attribute(split, "axis", 0) in (-1, 2) and attribute(softmax, "axis", -1) in (-1, 3)
        flat = array(constants[joined.input[1]]).tolist() == [0, 0, heads * head_dim]
        if same and operands and sizes and axes and flat and writers[softmax.input[0]] is scores:
            products = (scores.name, context.name)
            found.append(Attention(linear.name, heads, head_dim, products, joined.output[0]))
    return found


def quantized_attention(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Every canonical attention whose qkv linear is among ``layers`` as one QAttention.

    It multiplies integers in the linear and float32 in its two products, without splitting and transposing in between.
    Its node is called after the three layers it computes, "+" between them. QAttention scales q by head_dim^-½, which
    the canonical weights have folded in, so that is taken back out of the scales and biases of q.
    """
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model)}
    fused = {one.output: one for one in attentions(rewriter.model) if one.qkv in layers}
    for node in rewriter.model.graph.node:
        one = fused.get(node.output[0])
        if one is None:
            rewriter.nodes.append(node)  # what the fused ones leave behind is dropped in the end
            continue
        layer, width = layers[one.qkv], one.heads * one.head_dim
        factor = np.repeat(np.array([one.head_dim**0.5, 1, 1], np.float32), width)
        scale, zero_point = rewriter.grid(layer)
        inputs = [
            rewriter.quantize(layer, linears[one.qkv].input, scale, zero_point),
            rewriter.constant(f"{layer.name}.weight.q", layer.weight),
            rewriter.constant(f"{layer.name}.bias.q", layer.bias * factor),
            scale,
            rewriter.constant(f"{layer.name}.weight.scale", layer.weight_scale * factor),
            "",  # no mask
            zero_point,
            rewriter.constant(f"{layer.name}.weight.zero_point", np.zeros(3 * width, np.int8)),
        ]
        name = "+".join((one.qkv, *one.products))
        rewriter.node("QAttention", name, inputs, out=one.output, domain=CONTRIB, num_heads=one.heads)
    return rewriter.finish()


def float_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every canonical attention as one ``Attention`` in float32, named and scaled as :func:`quantized_attention`."""
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model)}
    constants = initializers(rewriter.model)
    fused = {one.output: one for one in attentions(rewriter.model)}
    for node in rewriter.model.graph.node:
        one = fused.get(node.output[0])
        if one is None:
            rewriter.nodes.append(node)
            continue
        linear, width = linears[one.qkv], one.heads * one.head_dim
        factor = np.repeat(np.array([one.head_dim**0.5, 1, 1], np.float32), width)
        weight = array(constants[linear.weight])
        matrix = weight if linear.channel_axis == 1 else weight.T
        bias = array(constants[linear.bias]).reshape(-1) if linear.bias else np.zeros(3 * width, np.float32)
        inputs = [
            linear.input,
            rewriter.constant(f"{one.qkv}.matrix", (matrix * factor).astype(np.float32)),
            rewriter.constant(f"{one.qkv}.bias.scaled", (bias * factor).astype(np.float32)),
        ]
        name = "+".join((one.qkv, *one.products))
        rewriter.node("Attention", name, inputs, out=one.output, domain=CONTRIB, num_heads=one.heads)
    return rewriter.finish()
