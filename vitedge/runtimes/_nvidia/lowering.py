"""The graph as TensorRT runs it fast: typed, of static batch, in operators that TensorRT 10.3 parses.

============================  =========================================================================================
variant                       what it is
============================  =========================================================================================
float                         float32 throughout
fp16                          float16 but for the picture's way to the first layer and for LayerNormalization, whose
                              sums of squares float16 can't hold; logits are float32 again. Heads of unequal
                              widths get zero channels
linears-int8-rest-fp16        fp16, and Q/DQ (signed, symmetric; per tensor for activations, per output channel for
                              weights) around the Linears between the first and the last layer. Biases stay float. The
                              head and attention stay fp16: Q/DQ there costs accuracy, and splits the fused attention
linears-convs-int8-rest-fp16  convolutions too, but those of fewer than 16 channels, such as the one that reads the
                              picture, group convolutions, and the pointwise one that writes the patches; where a
                              convolution is added to a tensor that is quantized anyway, the sum reads it quantized
linears-fp8-rest-fp16,        the same in FP8 (E4M3; one scale a tensor), for GPUs from compute capability 8.9 on, but
linears-convs-fp8-rest-fp16   no convolution whose kernel has more than 32 taps
============================  =========================================================================================

Q/DQ stand where TensorRT fuses them: :mod:`vitedge.runtimes._nvidia.fusing` has the rules.

One file serves TensorRT 10.3 to 11, where precision comes from the graph alone (``STRONGLY_TYPED``).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import (
    array,
    attribute,
    initializers,
    linear_layers,
    pin_batch,
    producers,
    set_metadata,
    to_bytes,
)
from vitedge.graph.typed import to_half
from vitedge.quantization.fp8 import quantize_fp8
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import Scheme
from vitedge.quantization.views import Layer
from vitedge.runtimes._nvidia.fusing import FP8_TAPS, quantize_residuals
from vitedge.runtimes._nvidia.heads import equal_heads, widened
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.lowering import (
    IN_EVERY_BLOCK,
    checked_variant,
    integer_layers,
    planned_layers,
    quantized,
)

#: Which kinds of layers each variant quantizes.
VARIANTS: dict[str, tuple[str, ...]] = {
    "float": (),
    "fp16": (),
    "linears-int8-rest-fp16": ("linear",),
    "linears-convs-int8-rest-fp16": ("linear", "conv"),
    "linears-fp8-rest-fp16": ("linear",),
    "linears-convs-fp8-rest-fp16": ("linear", "conv"),
}
#: Of a convolution, read and written. Tensor cores take channels by 32 in INT8 and by 8 in FP16, and what is missing is
#: padding (https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html). NVIDIA's Model
#: Optimizer has this limit, too; in INT8 it makes exceptions (``find_nodes_from_convs_to_exclude`` there).
LEAST_CHANNELS = 16
GRAPH = "model.onnx"
#: An integer near every data set's mean colour, exact in float16.
_CENTRE = 128.0


def lower(request: Request, variants: Collection[str], runtime: str) -> Lowered:
    """Write the typed graph of one candidate, with the preprocessing contract in its metadata; it's deterministic.

    Args:
        request: the float graph and the candidate.
        variants: the kernel variants that this package runs.
        runtime: its name, for the error text.

    Raises:
        UsageError: an unknown kernel variant.
        ModelError: weights that float16 can't hold.
    """
    variant = checked_variant(request, variants, runtime)
    graph, precisions, reasons = request.graph, dict[str, str](), dict[str, str]()
    if VARIANTS[variant]:
        graph, precisions, reasons = _quantized(request)
    if variant != "float":
        reasons |= {name: "; ".join(filter(None, (reasons.get(name), why))) for name, why in widened(graph).items()}
        graph = to_half(centre_pixels(equal_heads(graph)), keep=_float32_nodes(graph))
    return Lowered(
        graph=GRAPH,
        files={GRAPH: to_bytes(set_metadata(pin_batch(graph, request.batch), request.metadata))},
        layers=planned_layers(
            request.graph, precisions, rest="fp32" if variant == "float" else "fp16", reasons=reasons
        ),
        runtime_options={"strongly_typed": True, "tf32": False, **request.target.options},
        built_with={"onnx": str(onnx.__version__)},
        interpretable=graph,
    )


def centre_pixels(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same function, with 128 subtracted from the pixels before a patch convolution that has no padding.

    The canonical graph folds the mean colour into the convolution's bias, which therefore cancels most of a large sum;
    float16 would keep that sum to three digits. Centred pixels are exact in float16 and leave a small sum: measured on
    a ViT-Ti/16, three quarters of float16's whole deviation go away.
    """
    constants, made_by = initializers(graph), producers(graph)
    layers = linear_layers(graph)
    if not layers or layers[0].kind != "conv" or layers[0].bias is None:
        return graph
    layer, source = layers[0], made_by.get(layers[0].input)
    cast = made_by.get(source.input[0]) if source is not None and source.op_type == "Transpose" else None
    pads, group = attribute(layer.node, "pads", ()), attribute(layer.node, "group", 1)
    padded = attribute(layer.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(np.atleast_1d(pads))
    pixels = {value.name for value in graph.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    if cast is None or cast.op_type != "Cast" or cast.input[0] not in pixels or padded or group != 1:
        return graph
    assert layer.bias is not None
    kernel, bias = (np.asarray(array(constants[name]), np.float64) for name in (layer.weight, layer.bias))
    builder = GraphBuilder(graph)
    moved = (bias + _CENTRE * kernel.sum(axis=(1, 2, 3))).astype(np.float32)
    initializers(builder.model)[layer.bias].CopyFrom(numpy_helper.from_array(moved, layer.bias))
    for node in builder.model.graph.node:
        if node.name == layer.name:
            centre = builder.constant("image.centre.weight", np.float32(_CENTRE))
            node.input[0] = builder.node("Sub", "image.centre", layer.input, centre)
        builder.nodes.append(node)
    return builder.written()


def _float32_nodes(graph: onnx.ModelProto) -> set[str]:
    """Return everything between the picture and the first layer, and every LayerNormalization."""
    made_by = producers(graph)
    names = {node.name for node in graph.graph.node if node.op_type == "LayerNormalization"} | {"image.centre"}
    layers = linear_layers(graph)
    pending = [layers[0].input] if layers else []
    while pending:
        node = made_by.get(pending.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            pending += node.input
    return names


def _quantized(request: Request) -> tuple[onnx.ModelProto, dict[str, str], dict[str, str]]:
    """Return the graph with Q/DQ, the precision of each quantized layer, and why the others aren't quantized."""
    inner, variant = inner_layers(request.graph), request.candidate.variant
    precision = "fp8" if "-fp8-" in variant else "int8"

    def why_float(layer: Layer) -> str:
        if layer.name not in inner:
            return "the head stays fp16"
        return _why_float_convolution(layer, precision) if layer.linear.kind == "conv" else ""

    names, reasons = integer_layers(request, VARIANTS[variant], why_float)
    reasons = {
        node.name: "attention stays fp16" for node in request.graph.graph.node if node.name not in names
    } | reasons
    if precision == "fp8":
        assert request.statistics is not None and request.recipe is not None, "a quantized candidate needs statistics"
        graph = quantize_fp8(request.graph, request.statistics, request.recipe, names)
    else:
        graph = insert_qdq(*quantized(request, Scheme(activation="int8", symmetric=True), names))
    return quantize_residuals(graph), dict.fromkeys(names, precision), reasons


def _why_float_convolution(layer: Layer, precision: str) -> str:
    """Return the reason why a convolution isn't quantized; empty where it is."""
    if min(layer.weight.shape[:2]) < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} channels gain nothing in {precision}"
    if layer.name == "patch_embed.proj" and layer.view.kernel == (1, 1):
        return IN_EVERY_BLOCK
    taps = math.prod(layer.view.kernel)
    return f"TensorRT has no fast FP8 convolution of {taps} taps" if precision == "fp8" and taps > FP8_TAPS else ""


def inner_layers(graph: onnx.ModelProto) -> list[str]:
    """Return the layers whose output reaches another layer: all of the stem's and the blocks', and no head."""
    layers = {layer.name: layer for layer in linear_layers(graph)}
    leads_on: set[str] = set()  # tensors that reach a layer
    for node in reversed(graph.graph.node):
        if node.name in layers or any(name in leads_on for name in node.output):
            leads_on.update(node.input)
    return [name for name, layer in layers.items() if layer.output in leads_on]
