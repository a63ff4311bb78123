"""Views: the rows that a layer multiplies by its weights, one for each output position, for linears and convolutions.

A linear reads a tensor [..., C] as rows of K = C values, one a token. A convolution reads [N, C, H, W] as rows of
K = C·kh·kw values, one a receptive field (im2col), ordered as its weight [C_out, C, kh, kw] is. In both cases the layer
is ``rows [n, K] @ matrix [K, C_out] + bias``, so everything behind this module knows one kind of layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph.surgery import Linear, array, attribute, initializers, linear_layers


@dataclass(frozen=True)
class View:
    """One tensor, seen as the rows that a layer multiplies."""

    tensor: str
    kernel: tuple[int, ...] = ()  # (height, width) of a convolution; empty for a linear
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)  # top, left, bottom, right
    dilations: tuple[int, ...] = (1, 1)

    @property
    def key(self) -> str:
        """Name of this view among the statistics."""
        if not self.kernel:
            return self.tensor
        return f"{self.tensor}|{self.kernel}{self.strides}{self.pads}{self.dilations}".replace(" ", "")

    def channels(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the tensor as [n, C]: every value in its channel's column."""
        if self.kernel:
            values = np.moveaxis(values, 1, -1)
        return values.reshape(-1, values.shape[-1])

    def rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the tensor as [n, K]; positions are in the order of the layer's output."""
        if not self.kernel:
            return values.reshape(-1, values.shape[-1])
        top, left, bottom, right = self.pads
        values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(values, reach, axis=(2, 3))  # [N, C, rows, columns, kh, kw]
        windows = windows[:, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]
        windows = windows.transpose(0, 2, 3, 1, 4, 5)
        count = windows.shape[0] * windows.shape[1] * windows.shape[2]
        return np.asarray(windows.reshape(count, -1))


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantized, with its weights as a matrix."""

    linear: Linear
    view: View
    weight: NDArray[np.float32]  # in the graph's layout
    bias: NDArray[np.float32] | None  # [C_out]

    @property
    def name(self) -> str:
        """The node's name in the canonical graph."""
        return self.linear.name

    @property
    def outputs(self) -> int:
        """C_out."""
        return int(self.weight.shape[self.linear.channel_axis])

    @property
    def inputs(self) -> int:
        """K."""
        return self.weight.size // self.outputs

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The weights as float64 [K, C_out]."""
        return self.to_matrix(self.weight)

    def to_matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """Return weights in the graph's layout as float64 [K, C_out]."""
        flat = weight.reshape(weight.shape[0], -1)
        return np.asarray(flat.T if self.linear.channel_axis == 0 else flat, dtype=np.float64)

    def from_matrix(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Return a [K, C_out] matrix in the graph's layout."""
        return np.ascontiguousarray(matrix.T if self.linear.channel_axis == 0 else matrix).reshape(self.weight.shape)


def quantizable(model: onnx.ModelProto) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers of a float graph that can be quantized, in graph order, and a reason for each that can't."""
    constants, layers, refused = initializers(model), [], {}
    for linear in linear_layers(model):
        view = _view(linear)
        weight = array(constants[linear.weight])
        if isinstance(view, str):
            refused[linear.name] = view
        elif weight.dtype != np.float32:
            refused[linear.name] = f"its weights are {weight.dtype}, not float32"
        else:
            bias = array(constants[linear.bias]).reshape(-1) if linear.bias else None
            layers.append(Layer(linear, view, weight, None if bias is None else bias.astype(np.float32)))
    return layers, refused


def _view(linear: Linear) -> View | str:
    """Return the view, or the reason why there is none."""
    node = linear.node
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return "its Gemm transposes or scales"
        return View(linear.input)
    if linear.kind == "linear":
        return View(linear.input)
    kernel = _integers(node, "kernel_shape", ())
    if attribute(node, "group", 1) != 1:
        return "grouped convolution"
    if len(kernel) != 2 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return "not a two-dimensional convolution with explicit padding"
    return View(
        linear.input,
        kernel,
        _integers(node, "strides", (1, 1)),
        _integers(node, "pads", (0, 0, 0, 0)),
        _integers(node, "dilations", (1, 1)),
    )


def _integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = attribute(node, name, default)
    return tuple(int(item) for item in value) if isinstance(value, (list, tuple)) else default


def pixel_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Return the tensors that hold the picture as floats [N, C, H, W], and the uint8 input [N, H, W, C] of each."""
    pictures = {
        value.name: value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    }
    tensors = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in pictures:
            pictures[node.output[0]] = pictures[node.input[0]]
        elif node.op_type == "Transpose" and node.input[0] in pictures and attribute(node, "perm") == [0, 3, 1, 2]:
            tensors[node.output[0]] = pictures[node.input[0]]
    return tensors
