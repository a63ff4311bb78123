"""From float layers to ONNX Runtime's own integer operators (domain ``com.microsoft``), node names kept.

Every function takes the improved float graph (or what another one made of it) and the quantized layers, and returns a
new graph; layers that it has nothing for stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitedge.graph.surgery import (
    array,
    attribute,
    batch_size,
    consumers,
    copy,
    initializers,
    linear_layers,
    pin_batch,
    producers,
    shapes,
)
from vitedge.quantize.rounding import QuantizedLayer
from vitedge.quantize.views import View, pixel_tensors, quantizable

CONTRIB = "com.microsoft"
Layers = Mapping[str, QuantizedLayer]


class _Rewriter:
    """A graph that is written anew, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy(model)
        self.nodes: list[onnx.NodeProto] = []
        self._quantized: dict[tuple[str, float, int], str] = {}

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        return self.constant(name, np.asarray(values, np.int64))

    def scalar(self, name: str, value: np.generic) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, name: str, inputs: Sequence[str], *, out: str | None = None, **extra: Any) -> str:
        out = out or f"{name}.out"
        self.nodes.append(helper.make_node(operator, list(inputs), [out], name=name, **extra))
        return out

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", name, [x, self.integers(f"{name}.shape", shape)])

    def grid(self, layer: QuantizedLayer) -> tuple[str, str]:
        """Scale and zero point of the layer's input as constants."""
        return (
            self.scalar(f"{layer.name}.input.scale", np.float32(layer.input_scale)),
            self.scalar(f"{layer.name}.input.zero_point", np.uint8(layer.input_zero_point)),
        )

    def quantize(self, layer: QuantizedLayer, x: str, scale: str, zero_point: str) -> str:
        """The u8 form of ``x``; layers that read one tensor with one scale share it."""
        key = (x, layer.input_scale, layer.input_zero_point)
        if key not in self._quantized:
            self._quantized[key] = self.node("QuantizeLinear", f"{layer.name}.input.q", [x, scale, zero_point])
        return self._quantized[key]

    def multiply(
        self, layer: QuantizedLayer, x: str, grid: tuple[str, str], matrix: NDArray[np.int8], out: str
    ) -> None:
        """u8 rows times the s8 matrix [K, C_out], to float32 with the bias added."""
        scale, zero_point = grid
        inputs = [
            x,
            self.constant(f"{layer.name}.weight.q", matrix),
            scale,
            self.constant(f"{layer.name}.weight.scale", layer.weight_scale),
            zero_point,
            "",  # the weights' zero point is 0
            self.constant(f"{layer.name}.bias.q", layer.bias),
        ]
        self.node("MatMulIntegerToFloat", layer.name, inputs, out=out, domain=CONTRIB)

    def finish(self) -> onnx.ModelProto:
        """The graph without what nothing needs any more."""
        graph = self.model.graph
        needed = {value.name for value in graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        if all(opset.domain != CONTRIB for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return self.model


# --- linears ---------------------------------------------------------------------------------------------------------


def integer_linears(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Every linear of ``layers`` as QuantizeLinear and MatMulIntegerToFloat, its bias inside."""
    rewriter = _Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model) if linear.kind == "linear"}
    absorbed = {linear.bias_node.name for name, linear in linears.items() if name in layers and linear.bias_node}
    for node in rewriter.model.graph.node:
        if node.name in layers and node.name in linears:
            layer, linear = layers[node.name], linears[node.name]
            grid = rewriter.grid(layer)
            matrix = layer.weight if layer.channel_axis == 1 else layer.weight.T
            rewriter.multiply(layer, rewriter.quantize(layer, linear.input, *grid), grid, matrix, linear.output)
        elif node.name not in absorbed:
            rewriter.nodes.append(node)
    return rewriter.finish()


# --- attention -------------------------------------------------------------------------------------------------------


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
    rewriter = _Rewriter(model)
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


# --- convolutions ----------------------------------------------------------------------------------------------------


def integer_convolutions(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Every convolution of ``layers`` as rows (im2col, of bytes) and MatMulIntegerToFloat.

    Between such convolutions, and behind them as long as nothing else reads it, the picture stays [N, H·W, C]: as the
    GELUs of a stem, a pointwise convolution (then a MatMul) and the canonical patch tokens take it. A convolution that
    reads the picture itself reads its bytes.
    """
    rewriter = _Rewriter(model)
    model = rewriter.model
    views = {layer.name: layer.view for layer in quantizable(model)[0] if layer.linear.kind == "conv"}
    known = shapes(pin_batch(model, 1) if batch_size(model) is None else model)
    constants, pixels = initializers(model), pixel_tensors(model)
    rows: dict[str, str] = {}  # tensor [N, C, H, W] or flat [N, C, H·W] -> the same as rows [N, H·W, C]
    same: dict[str, str] = {}  # tensor that is nothing but another one's rows -> those

    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        source, target = (node.input[0] if node.input else ""), node.output[0]
        if node.name in layers and node.name in views:
            layer, shape = layers[node.name], tuple(dim or 0 for dim in known[source][1:])
            grid = rewriter.grid(layer)
            if source in pixels and (layer.input_scale, layer.input_zero_point) == (1, 0):
                picture = rewriter.reshape(f"{node.name}.pixels", pixels[source], [0, -1, shape[0]])
            else:
                if source not in rows:
                    flat = rewriter.reshape(f"{source}.flat", source, [0, shape[0], -1])
                    rows[source] = rewriter.node("Transpose", f"{source}.rows", [flat], perm=[0, 2, 1])
                picture = rewriter.quantize(layer, rows[source], *grid)
            fields = _receptive_fields(rewriter, node.name, views[node.name], picture, grid[1], shape)
            matrix = layer.weight.transpose(2, 3, 1, 0).reshape(-1, len(layer.bias))  # by tap, then by channel
            rows[target] = f"{target}.rows"
            rewriter.multiply(layer, fields, grid, matrix, rows[target])
            # the picture's own layout, for whatever reads that; dropped where nothing does
            planes = rewriter.node("Transpose", f"{node.name}.planes", [rows[target]], perm=[0, 2, 1])
            size = rewriter.integers(f"{node.name}.planes.shape", [0, *(dim or 0 for dim in known[target][1:])])
            rewriter.node("Reshape", f"{node.name}.restored", [planes, size], out=target)
        elif source in rows and node.name in views and pointwise(views[node.name]):
            rows[target] = f"{target}.rows"
            weight = array(constants[node.input[1]])
            product = f"{node.name}.product.out"
            matrix = rewriter.constant(f"{node.name}.matrix", weight.reshape(len(weight), -1).T)
            rewriter.node("MatMul", node.name, [rows[source], matrix], out=product)
            rewriter.node("Add", f"{node.name}.bias", [product, node.input[2]], out=rows[target])
            node.name += ".planes"
            rewriter.nodes.append(node)
        elif source in rows and node.op_type == "Gelu":
            rows[target] = f"{target}.rows"
            extra = {"approximate": attribute(node, "approximate", "none")}
            rewriter.node("Gelu", node.name, [rows[source]], out=rows[target], **extra)
            node.name += ".planes"
            rewriter.nodes.append(node)
        elif source in rows and node.op_type == "Transpose" and attribute(node, "perm") == [0, 2, 1]:
            same[target] = rows[source]
        else:
            if source in rows and node.op_type == "Reshape" and _flattens(constants.get(node.input[1]), known[source]):
                rows[target] = rows[source]
            rewriter.nodes.append(node)
    return rewriter.finish()


def _flattens(shape: onnx.TensorProto | None, source: tuple[int | None, ...]) -> bool:
    """Whether a Reshape to this shape makes [N, C, H·W] of [N, C, H, W]."""
    sizes = [] if shape is None else array(shape).tolist()
    area = (source[2] or 0) * (source[3] or 0) if len(source) == 4 else 0
    return len(sizes) == 3 and sizes[0] == 0 and sizes[1] in (0, source[1]) and sizes[2] in (-1, area)


def _receptive_fields(
    rewriter: _Rewriter, name: str, view: View, picture: str, zero_point: str, shape: tuple[int, ...]
) -> str:
    """u8 [N, H·W, C] of a picture of ``shape`` (C, H, W) to u8 [N, positions, kh·kw·C], by tap, then by channel."""
    channels, height, width = shape
    (kernel_height, kernel_width), taps = view.kernel, view.kernel[0] * view.kernel[1]
    if pointwise(view):
        return picture
    if tiles(view) and height % kernel_height == width % kernel_width == 0:  # patches: whole lines move together
        lines = [0, height // kernel_height, kernel_height, width // kernel_width, kernel_width * channels]
        cut = rewriter.reshape(f"{name}.lines", picture, lines)
        swapped = rewriter.node("Transpose", f"{name}.patches", [cut], perm=[0, 1, 3, 2, 4])
        return rewriter.reshape(f"{name}.fields", swapped, [0, -1, taps * channels])
    index = field_indices(view, height, width)
    padding = rewriter.integers(f"{name}.padding", [0, 0, 0, 0, 1, 0])  # one row more: zeros
    padded = rewriter.node("Pad", f"{name}.padded", [picture, padding, zero_point])
    indices = rewriter.constant(f"{name}.indices", index.reshape(-1).astype(np.int32))
    gathered = rewriter.node("Gather", f"{name}.gathered", [padded, indices], axis=1)
    return rewriter.reshape(f"{name}.fields", gathered, [0, len(index), taps * channels])


def pointwise(view: View) -> bool:
    """Whether a convolution reads one pixel for each it writes: a linear over channels."""
    return view.kernel == view.strides == (1, 1) and not any(view.pads)


def tiles(view: View) -> bool:
    """Whether a convolution's receptive fields lie side by side, without padding, overlap or gaps."""
    return view.strides == view.kernel and not any(view.pads) and view.dilations == (1, 1)


def field_indices(view: View, height: int, width: int) -> NDArray[np.int64]:
    """Which pixel (row by row) each position's taps read, int64 [positions, kh·kw]; H·W stands for padding."""
    top, left, bottom, right = view.pads
    axes = []
    for axis, (size, before, after) in enumerate(((height, top, bottom), (width, left, right))):
        kernel, stride, dilation = view.kernel[axis], view.strides[axis], view.dilations[axis]
        count = (size + before + after - (kernel - 1) * dilation - 1) // stride + 1
        axes.append(np.arange(count)[:, None] * stride - before + np.arange(kernel) * dilation)
    y, x = axes[0][:, None, :, None], axes[1][None, :, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.asarray(np.where(inside, y * width + x, height * width)).reshape(len(axes[0]) * len(axes[1]), -1)
