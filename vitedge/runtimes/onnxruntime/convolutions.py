"""Convolutions as rows of bytes and integer products (domain ``com.microsoft``), node names kept."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import array, attribute, consumers, initializers, pinned, shapes
from vitedge.quantization.rounding import QuantizedLayer
from vitedge.quantization.views import View, pixel_tensors, quantizable
from vitedge.runtimes.onnxruntime.rewriter import Grid, Layers, Rewriter


def integer_convolutions(
    model: onnx.ModelProto,
    layers: Layers,
    standard: onnx.ModelProto | None = None,
    dynamic: Collection[str] = (),
) -> onnx.ModelProto:
    """Rewrite every convolution of ``layers`` as rows (im2col, of bytes) and MatMulIntegerToFloat.

    Between such convolutions, and behind them as long as nothing else reads it, the picture stays rows [N, H·W, C]: as
    the GELUs of a stem, factors of its channels, a pointwise convolution (then a MatMul) and the canonical patch tokens
    take it. A MaxPool without overlap is a Max: the convolution before it writes rows [N, k·k, H·W, C], only those that
    are read. A convolution that reads the picture itself reads its bytes.

    Args:
        model: the improved float graph, or what was made of its linears.
        layers: what is in integers.
        standard: the graph in ONNX's own operators, by which shapes are inferred where ``model`` has others already.
        dynamic: names of the layers that round their input by its own range.
    """
    rewriting = _Rewriting(model, layers, standard, dynamic)
    for node in rewriting.builder.model.graph.node:
        rewriting.rewrite(node)
    return rewriting.builder.finish()


class _Rewriting:
    """Rewrites one graph node by node, and knows which pictures exist as rows already.

    What is computed as rows is there in the picture's own layout, too, for whatever reads that; it's dropped in the
    end where nothing does.
    """

    def __init__(
        self, model: onnx.ModelProto, layers: Layers, standard: onnx.ModelProto | None, dynamic: Collection[str]
    ) -> None:
        self.builder = Rewriter(model)
        model = self.builder.model
        self.layers, self.dynamic = layers, dynamic
        self.views = {layer.name: layer.view for layer in quantizable(model)[0] if layer.linear.kind == "conv"}
        self.shapes = shapes(pinned(model)) | (shapes(pinned(standard)) if standard is not None else {})
        self.constants, self.pixels = initializers(model), pixel_tensors(model)
        self.pools = _tiling_pools(model)
        self.rows: dict[str, str] = {}  # tensor [N, C, H, W] or flat [N, C, H·W] -> the same as rows [N, H·W, C]
        self.tokens: dict[str, str] = {}  # tensor [N, H·W, C] that is nothing but another one's rows -> those

    def rewrite(self, node: onnx.NodeProto) -> None:
        """Append the replacement of a node."""
        node.input[:] = [self.tokens.get(name, name) for name in node.input]
        source, target = (node.input[0] if node.input else ""), node.output[0]
        if node.name in self.layers and node.name in self.views:
            self.convolution(self.layers[node.name], source, target)
        elif source in self.pools and target in self.rows:
            pass  # computed with the convolution before it
        elif source not in self.rows:
            self.builder.nodes.append(node)
        elif node.name in self.views and pointwise(self.views[node.name]):
            self.float_pointwise(node, source, target)
        elif node.op_type == "Gelu":
            self.gelu(node, source, target)
        elif node.op_type == "Mul" and self.by_channel(node, source):
            self.scale(node, source, target)
        elif node.op_type == "Transpose" and attribute(node, "perm") == [0, 2, 1]:
            self.tokens[target] = self.rows[source]
        else:
            if node.op_type == "Reshape" and _flattens(self.constants.get(node.input[1]), self.shapes[source]):
                self.rows[target] = self.rows[source]
            self.builder.nodes.append(node)

    def convolution(self, layer: QuantizedLayer, source: str, target: str) -> None:
        """Compute in integers: bytes [N, H·W, C], receptive fields [N, positions, K], rows [N, positions, C_out]."""
        name, pool = layer.name, self.pools.get(target)
        picture, grid = self.bytes_of(layer, source)
        side = 1 if pool is None else attribute(pool, "kernel_shape")[0]
        fields = _receptive_fields(self.builder, name, self.views[name], picture, grid[1], self.chw(source), side)
        matrix = layer.weight.transpose(2, 3, 1, 0).reshape(-1, len(layer.bias))  # [K, C_out], by tap, then by channel
        rows = self.builder.multiply(layer, fields, grid, matrix, f"{target}.rows")
        if pool is not None:
            target = pool.output[0]
            rows = self.maximum(pool.name, rows, side * side, target)
        self.rows[target] = rows
        planes = self.builder.transpose(f"{name}.planes", rows, [0, 2, 1])
        shape = self.builder.integers(f"{name}.planes.shape", [0, *self.chw(target)])
        self.builder.node("Reshape", f"{name}.restored", planes, shape, out=target)

    def maximum(self, name: str, rows: str, count: int, target: str) -> str:
        """Take the maximum of rows [N, count, H·W, C] over ``count``: rows [N, H·W, C] of the picture ``target``."""
        _, height, width = self.chw(target)
        sizes = self.builder.integers(f"{name}.sizes", [height * width] * count)
        parts = [f"{name}.{part}" for part in range(count)]
        self.builder.node("Split", f"{name}.parts", rows, sizes, out=parts, axis=1)
        return self.builder.node("Max", name, *parts, out=f"{target}.rows")

    def bytes_of(self, layer: QuantizedLayer, source: str) -> tuple[str, Grid]:
        """Return a layer's input as u8 rows [N, H·W, C], with its scale and zero point."""
        grid = self.builder.grid(layer)
        channels = self.chw(source)[0]
        if source in self.pixels and (layer.input_scale, layer.input_zero_point) == (1, 0):
            return self.builder.reshape(f"{layer.name}.pixels", self.pixels[source], [0, -1, channels]), grid
        if source not in self.rows:
            pixels = self.builder.transpose(f"{source}.pixels", source, [0, 2, 3, 1])  # costs nothing behind a Conv
            self.rows[source] = self.builder.reshape(f"{source}.rows", pixels, [0, -1, channels])
        if layer.name in self.dynamic:
            return self.builder.quantize_by_range(layer, self.rows[source])
        return self.builder.quantize(layer, self.rows[source], grid), grid

    def float_pointwise(self, node: onnx.NodeProto, source: str, target: str) -> None:
        """Compute a pointwise convolution in float32, as a MatMul over rows."""
        weight = array(self.constants[node.input[1]])
        matrix = self.builder.constant(f"{node.name}.matrix", weight.reshape(len(weight), -1).T)
        product = self.builder.node("MatMul", node.name, self.rows[source], matrix, out=f"{node.name}.product.out")
        self.rows[target] = self.builder.node("Add", f"{node.name}.bias", product, node.input[2], out=f"{target}.rows")
        self.keep_planes(node)

    def gelu(self, node: onnx.NodeProto, source: str, target: str) -> None:
        """Compute a GELU of rows."""
        kind = attribute(node, "approximate", "none")
        self.rows[target] = self.builder.node(
            "Gelu", node.name, self.rows[source], out=f"{target}.rows", approximate=kind
        )
        self.keep_planes(node)

    def by_channel(self, node: onnx.NodeProto, source: str) -> bool:
        """Whether a Mul has one constant for each channel of a picture [N, C, H, W]."""
        factors = self.constants.get(node.input[1])
        return factors is not None and list(factors.dims) == [self.chw(source)[0], 1, 1]

    def scale(self, node: onnx.NodeProto, source: str, target: str) -> None:
        """Multiply each channel of rows by a constant."""
        factors = array(self.constants[node.input[1]]).reshape(-1)
        by = self.builder.constant(f"{node.input[1]}.channels", factors)
        self.rows[target] = self.builder.node("Mul", node.name, self.rows[source], by, out=f"{target}.rows")
        self.keep_planes(node)

    def keep_planes(self, node: onnx.NodeProto) -> None:
        """Keep the node itself, in the picture's own layout, under another name."""
        node.name += ".planes"
        self.builder.nodes.append(node)

    def chw(self, tensor: str) -> tuple[int, ...]:
        """Return channels, height and width of a picture [N, C, H, W]."""
        return tuple(size or 0 for size in self.shapes[tensor][1:])


def _flattens(shape: onnx.TensorProto | None, source: tuple[int | None, ...]) -> bool:
    """Whether a Reshape to this shape turns [N, C, H, W] into [N, C, H·W]."""
    sizes = [] if shape is None else array(shape).tolist()
    area = (source[2] or 0) * (source[3] or 0) if len(source) == 4 else 0
    return len(sizes) == 3 and sizes[0] == 0 and sizes[1] in (0, source[1]) and sizes[2] in (-1, area)


def _tiling_pools(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return each square MaxPool without padding, overlap or a second reader of its input, by its input."""
    outputs = {output.name for output in model.graph.output}
    alone = {name: nodes[0] for name, nodes in consumers(model).items() if len(nodes) == 1 and name not in outputs}
    return {name: node for name, node in alone.items() if _pools_tiles(node)}


def _pools_tiles(node: onnx.NodeProto) -> bool:
    if node.op_type != "MaxPool" or len(node.output) > 1 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    sides, strides = attribute(node, "kernel_shape"), attribute(node, "strides", [1, 1])
    padded = any(attribute(node, "pads", [])) or bool(attribute(node, "ceil_mode", 0))
    dilated = any(step != 1 for step in attribute(node, "dilations", []))
    return sides == strides and len(set(sides)) == 1 and len(sides) == 2 and not padded and not dilated


def _receptive_fields(
    builder: Rewriter, name: str, view: View, picture: str, zero_point: str, shape: tuple[int, ...], side: int = 1
) -> str:
    """Turn u8 [N, H·W, C] of a picture (C, H, W) into u8 [N, positions, kh·kw·C], by tap, then by channel.

    With ``side``, the positions are those that a MaxPool of that side reads, [side, side, H', W'].
    """
    channels, height, width = shape
    (kernel_height, kernel_width), taps = view.kernel, view.kernel[0] * view.kernel[1]
    if pointwise(view) and side == 1:
        return picture
    patches = tiles(view) and height % kernel_height == width % kernel_width == 0
    if patches and side == 1:  # whole lines move together
        lines = [0, height // kernel_height, kernel_height, width // kernel_width, kernel_width * channels]
        cut = builder.reshape(f"{name}.lines", picture, lines)
        swapped = builder.transpose(f"{name}.patches", cut, [0, 1, 3, 2, 4])
        return builder.reshape(f"{name}.fields", swapped, [0, -1, taps * channels])
    index = field_indices(view, height, width, side)
    padding = builder.integers(f"{name}.padding", [0, 0, 0, 0, 1, 0])  # one row more: zeros
    padded = builder.node("Pad", f"{name}.padded", picture, padding, zero_point)
    indices = builder.constant(f"{name}.indices", index.reshape(-1).astype(np.int32))
    gathered = builder.node("Gather", f"{name}.gathered", padded, indices, axis=1)
    return builder.reshape(f"{name}.fields", gathered, [0, len(index), taps * channels])


def pointwise(view: View) -> bool:
    """Whether a convolution reads one pixel for each it writes: a linear over channels."""
    return view.kernel == view.strides == (1, 1) and not any(view.pads)


def tiles(view: View) -> bool:
    """Whether a convolution's receptive fields lie side by side, without padding, overlap or gaps."""
    return view.strides == view.kernel and not any(view.pads) and view.dilations == (1, 1)


def field_indices(view: View, height: int, width: int, side: int = 1) -> NDArray[np.int64]:
    """Return the pixel (row by row) that each tap of each position reads, int64 [positions, kh·kw]; H·W is padding.

    With ``side``, the positions are those that a MaxPool of that side reads, [side, side, H', W'].
    """
    top, left, bottom, right = view.pads
    axes = []
    for axis, (size, before, after) in enumerate(((height, top, bottom), (width, left, right))):
        kernel, stride, dilation = view.kernel[axis], view.strides[axis], view.dilations[axis]
        count = (size + before + after - (kernel - 1) * dilation - 1) // stride + 1
        starts = np.arange(count - count % side).reshape(-1, side).T  # [side, pooled]
        axes.append(starts[..., None] * stride - before + np.arange(kernel) * dilation)
    y, x = axes[0][:, None, :, None, :, None], axes[1][None, :, None, :, None, :]  # [side, side, H', W', kh, kw]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = np.where(inside, y * width + x, height * width)
    return np.asarray(index.reshape(-1, view.kernel[0] * view.kernel[1]), np.int64)
