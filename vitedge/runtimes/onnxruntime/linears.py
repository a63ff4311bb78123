"""Linears in ONNX Runtime's own integer operators (domain ``com.microsoft``), node names kept.

Every function takes the improved float graph (or what another one made of it) and the layers, and returns a new graph;
layers that it has nothing for stay as they are.

==================  ===============================================================================================
kernel              what it multiplies
==================  ===============================================================================================
static              u8 activations, scales from calibration, by s8 weights: ``MatMulIntegerToFloat``, bias inside
gemm                the same as ``QGemm`` on two-dimensional rows, its bias an s32
dynamic             u8 activations, scales from each inference's own range, by s8 weights: ``DynamicQuantizeMatMul``
weights             float32 activations by 8-bit weights in blocks of 32: ``MatMulNBits``. Less memory to read
==================  ===============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from vitedge.graph.surgery import Linear, linear_layers, pinned, shapes
from vitedge.quantization.rounding import QuantizedLayer
from vitedge.runtimes.onnxruntime.rewriter import Layers, Rewriter

#: Weights that share one scale in ``MatMulNBits``.
NBITS_BLOCK = 32
Shape = tuple[int | None, ...]  # of the layer's input
Kernel = Callable[[Rewriter, QuantizedLayer, Linear, Shape], None]


def integer_linears(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Rewrite every linear of ``layers`` as QuantizeLinear and MatMulIntegerToFloat, with its bias inside."""
    return _with(model, layers, _static)


def gemm_linears(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Rewrite every linear of ``layers`` as QuantizeLinear and QGemm on rows [N · T, K]."""
    return _with(model, layers, _gemm)


def dynamic_linears(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Rewrite every linear of ``layers`` as DynamicQuantizeMatMul; the observed scales of its input aren't used."""
    return _with(model, layers, _dynamic)


def weight_only_linears(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Rewrite every linear of ``layers`` as MatMulNBits: integer weights, float32 products.

    The accuracy level is set to 1, float32: the default lets the kernel quantize activations too.
    """
    return _with(model, layers, _weight_only)


def _with(model: onnx.ModelProto, layers: Layers, kernel: Kernel) -> onnx.ModelProto:
    rewriter = Rewriter(model)
    linears = {linear.name: linear for linear in linear_layers(rewriter.model) if linear.kind == "linear"}
    inferred = shapes(pinned(rewriter.model))
    absorbed = {linear.bias_node.name for name, linear in linears.items() if name in layers and linear.bias_node}
    for node in rewriter.model.graph.node:
        if node.name in layers and node.name in linears:
            linear = linears[node.name]
            kernel(rewriter, layers[node.name], linear, inferred.get(linear.input, ()))
        elif node.name not in absorbed:
            rewriter.nodes.append(node)
    return rewriter.finish()


def _matrix(layer: QuantizedLayer) -> np.ndarray:
    """Return the weights as int8 [K, C_out]."""
    return np.asarray(layer.weight if layer.channel_axis == 1 else layer.weight.T)


def _static(rewriter: Rewriter, layer: QuantizedLayer, linear: Linear, shape: Shape) -> None:
    grid = rewriter.grid(layer)
    rewriter.multiply(layer, rewriter.quantize(layer, linear.input, grid), grid, _matrix(layer), linear.output)


def _gemm(rewriter: Rewriter, layer: QuantizedLayer, linear: Linear, shape: Shape) -> None:
    grid, matrix = rewriter.grid(layer), _matrix(layer)
    step = layer.weight_scale.astype(np.float64) * layer.input_scale
    limit = np.iinfo(np.int32)
    bias = np.clip(np.rint(layer.bias / step), limit.min, limit.max).astype(np.int32)
    rows = rewriter.reshape(f"{layer.name}.rows", rewriter.quantize(layer, linear.input, grid), [-1, len(matrix)])
    inputs = [
        rows,
        *grid,
        rewriter.constant(f"{layer.name}.weight.q", matrix),
        rewriter.constant(f"{layer.name}.weight.scale", layer.weight_scale),
        rewriter.constant(f"{layer.name}.weight.zero_point", np.zeros(len(layer.weight_scale), np.int8)),
        rewriter.constant(f"{layer.name}.bias.q", bias),
    ]
    product = rewriter.contrib("QGemm", layer.name, *inputs)
    tokens = rewriter.integers(f"{layer.name}.tokens.shape", [-1, *(dim or 0 for dim in shape[1:-1]), matrix.shape[1]])
    rewriter.node("Reshape", f"{layer.name}.tokens", product, tokens, out=linear.output)


def _dynamic(rewriter: Rewriter, layer: QuantizedLayer, linear: Linear, shape: Shape) -> None:
    inputs = [
        linear.input,
        rewriter.constant(f"{layer.name}.weight.q", _matrix(layer)),
        rewriter.constant(f"{layer.name}.weight.scale", layer.weight_scale),
        "",  # the weights' zero point is 0
        rewriter.constant(f"{layer.name}.bias.q", layer.bias),
    ]
    rewriter.contrib("DynamicQuantizeMatMul", layer.name, *inputs, out=linear.output)


def _weight_only(rewriter: Rewriter, layer: QuantizedLayer, linear: Linear, shape: Shape) -> None:
    matrix = _matrix(layer)
    inner, outer = matrix.shape
    blocks = -(-inner // NBITS_BLOCK)
    padded = np.zeros((outer, blocks * NBITS_BLOCK), np.int16)
    padded[:, :inner] = matrix.T
    codes = (padded + 128).astype(np.uint8).reshape(outer, blocks, NBITS_BLOCK)  # zero point 128, the default
    scales = np.repeat(layer.weight_scale[:, None], blocks, axis=1)
    inputs = [
        linear.input,
        rewriter.constant(f"{layer.name}.weight.q", codes),
        rewriter.constant(f"{layer.name}.weight.scale", scales),
        "",
        "",
        rewriter.constant(f"{layer.name}.bias.q", layer.bias),
    ]
    extra = {"K": inner, "N": outer, "bits": 8, "block_size": NBITS_BLOCK, "accuracy_level": 1}
    rewriter.contrib("MatMulNBits", layer.name, *inputs, out=linear.output, **extra)
