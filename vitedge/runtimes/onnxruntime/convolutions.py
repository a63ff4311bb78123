"""Convolutions as rows of bytes and integer products (domain ``com.microsoft``), node names kept."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import array, attribute, initializers, pinned, shapes
from vitedge.quantization.views import View, pixel_tensors, quantizable
from vitedge.runtimes.onnxruntime.rewriter import Layers, Rewriter


def integer_convolutions(
    model: onnx.ModelProto,
    layers: Layers,
    standard: onnx.ModelProto | None = None,
    dynamic: Collection[str] = (),
) -> onnx.ModelProto:
    """Every convolution of ``layers`` as rows (im2col, of bytes) and MatMulIntegerToFloat.

    Between such convolutions, and behind them as long as nothing else reads it, the picture stays [N, H·W, C]: as the
    GELUs of a stem, a pointwise convolution (then a MatMul) and the canonical patch tokens take it. A convolution that
    reads the picture itself reads its bytes. ``standard`` is the graph in ONNX's own operators, by which shapes are
    inferred where ``model`` has others already. Those in ``dynamic`` round their input by its own range.
    """
    rewriter = Rewriter(model)
    model = rewriter.model
    views = {layer.name: layer.view for layer in quantizable(model)[0] if layer.linear.kind == "conv"}
    known = shapes(pinned(model)) | (shapes(pinned(standard)) if standard is not None else {})
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
                if node.name in dynamic:
                    picture, grid = rewriter.quantize_by_range(layer, rows[source])
                else:
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
    rewriter: Rewriter, name: str, view: View, picture: str, zero_point: str, shape: tuple[int, ...]
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
