"""The graph as ONNX Runtime runs it fast on CPUs: an ONNX file of static batch.

===============  ==============================================================================================
variant          what it is
===============  ==============================================================================================
float            the canonical graph, like all others without unused tokens
float-attention  the same with each attention and its qkv linear as one ``Attention``
linears-int8     Linear and Conv layers multiply u8 by s8 in ``MatMulIntegerToFloat``, bias inside; convolutions are
                 brought there as rows; attention and its qkv linear are one ``QAttention``, or three linears and
                 ``MultiHeadAttention`` where heads don't come out even on the threads; the rest is float32
gemm-int8        the same with the other linears as ``QGemm``
static-int8      linears and convolutions as in linears-int8, attention as it stands in the canonical graph
dynamic-int8     linears as ``DynamicQuantizeMatMul``: scales from each inference's own range; the rest is float32
weights-int8     linears as ``MatMulNBits``: 8-bit weights, float32 products; the rest is float32
===============  ==============================================================================================

Standard Q/DQ isn't used: ONNX Runtime turns it into operators only in part, and what is left runs slower than float32
(``docs/quantization-results.md`` has the figures). Activations are u8 per tensor, with static scales; convolutions of
a stem take each picture's own range where the batch is 1. Weights are s8, per output channel. Processors without VNNI
multiply them with ``vpmaddubsw``, which adds the products of neighbours in saturating 16 bits, so neighbours add up to
128 at most unless the target promises an instruction set that accumulates in 32 bits. A GELU whose output is rounded to
8 bits is computed by tanh where that moves values by a small part of a step: it takes two thirds of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import onnx

from vitedge.formats.target import Option
from vitedge.graph.surgery import pin_batch, pinned, set_metadata, shapes, to_bytes
from vitedge.graph.unused_tokens import without_unused_tokens
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import Scheme
from vitedge.quantization.views import Layer, pixel_tensors, quantizable
from vitedge.runtimes.attention import attentions
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.lowering import IN_EVERY_BLOCK, checked_variant, integer_layers, planned_layers, quantized
from vitedge.runtimes.onnxruntime import detect
from vitedge.runtimes.onnxruntime.attention import float_attention, quantized_attention
from vitedge.runtimes.onnxruntime.convolutions import integer_convolutions, pointwise, tiles
from vitedge.runtimes.onnxruntime.gelu import tanh_gelus
from vitedge.runtimes.onnxruntime.linears import (
    dynamic_linears,
    gemm_linears,
    integer_linears,
    weight_only_linears,
)
from vitedge.runtimes.onnxruntime.rewriter import Layers

GRAPH = "model.onnx"
OPTIONS: dict[str, Option] = {
    "graph_optimization_level": "all",
    "execution_mode": "sequential",
    "enable_cpu_mem_arena": True,
    "enable_mem_pattern": True,
    "session.intra_op.allow_spinning": True,
    "session.inter_op.allow_spinning": False,
}


def lower(request: Request) -> Lowered:
    """Write the graph of one candidate, with the preprocessing contract in its metadata; it's deterministic.

    Raises:
        UsageError: an unknown kernel variant.
    """
    variant = checked_variant(request, VARIANTS, detect.NAME)
    graph, standard, precisions, reasons = VARIANTS[variant](request)
    return Lowered(
        graph=GRAPH,
        files={GRAPH: to_bytes(set_metadata(pin_batch(graph, request.batch), request.metadata))},
        layers=planned_layers(request.graph, precisions, rest="fp32", reasons=reasons),
        runtime_options={**OPTIONS, **request.target.options},
        built_with={"onnx": str(onnx.__version__), "onnxruntime": detect.installed() or ""},
        interpretable=standard,
    )


#: (graph, the same arithmetic in standard operators, precision by layer name, reasons by layer name)
Variant = tuple[onnx.ModelProto, onnx.ModelProto, dict[str, str], dict[str, str]]
Builder = Callable[[Request], Variant]
#: From the improved float graph, its layers, the request, and the layers that are rounded by their inputs' own ranges.
Build = Callable[[onnx.ModelProto, Layers, Request, Collection[str]], onnx.ModelProto]
Linears = Callable[[onnx.ModelProto, Layers], onnx.ModelProto]


def _float(request: Request) -> Variant:
    graph = without_unused_tokens(request.graph)
    return graph, graph, {}, {}


def _float_attention(request: Request) -> Variant:
    graph = without_unused_tokens(request.graph)
    return float_attention(graph), graph, {}, {}


def _integers(
    build: Build,
    kinds: tuple[str, ...] = ("linear", "conv"),
    inputs: Literal["static", "dynamic", "float"] = "static",
) -> Builder:
    """Write a variant in which the layers of these kinds have integer weights and rounded inputs."""

    def variant(request: Request) -> Variant:
        scheme = Scheme("uint8", symmetric=False, wide_sums=request.target.wide_sums)
        against = reasons_for_float(request.graph)
        names, reasons = integer_layers(request, kinds, lambda layer: against.get(layer.name, ""))
        graph, layers = quantized(request, scheme, names)
        graph = without_unused_tokens(graph)
        if inputs != "float":
            graph = tanh_gelus(graph, layers)
        ranged = {"static": by_own_range(graph, layers, request.batch), "dynamic": frozenset(layers)}
        dynamic = ranged.get(inputs, frozenset())
        standard = insert_qdq(graph, layers, dynamic=dynamic, weights_only=inputs == "float")
        if dynamic:  # interpreted, too, each inference has its own range
            standard = pin_batch(standard, request.batch)
        return build(graph, layers, request, dynamic), standard, dict.fromkeys(layers, "int8"), reasons

    return variant


#: Threads for a target that names no number: the cores that small boards have left while they decode pictures.
THREADS = 2


def by_own_range(graph: onnx.ModelProto, layers: Layers, batch: int) -> frozenset[str]:
    """Return convolutions whose inputs are rounded by each picture's own range: all but those that read its bytes.

    Activations of a stem reach twice as far in one picture as in another, so a range that holds them all wastes half of
    the levels, or clips the rare ones. A batch has one range, which would let its pictures change each other's logits:
    more than one take the observed range.
    """
    if batch != 1:
        return frozenset()
    pixels = pixel_tensors(graph)
    return frozenset(layer.name for layer in layers.values() if layer.kind == "conv" and layer.input not in pixels)


def integer_graph(
    graph: onnx.ModelProto,
    layers: Layers,
    linears: Linears = integer_linears,
    *,
    threads: int = 1,
    batch: int = 1,
    dynamic: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the improved float graph with ``layers`` and attention in integers; ``dynamic`` ones use own ranges."""
    within = {attention.qkv for attention in attentions(graph)}
    multiplied = linears(graph, {name: layer for name, layer in layers.items() if name not in within})
    attending = quantized_attention(multiplied, layers, threads=threads, batch=batch)
    return integer_convolutions(attending, layers, graph, dynamic)


def _whole(linears: Linears) -> Build:
    def build(graph: onnx.ModelProto, layers: Layers, request: Request, dynamic: Collection[str]) -> onnx.ModelProto:
        threads = request.target.threads or THREADS
        return integer_graph(graph, layers, linears, threads=threads, batch=request.batch, dynamic=dynamic)

    return build


def _static_graph(
    graph: onnx.ModelProto, layers: Layers, request: Request, dynamic: Collection[str]
) -> onnx.ModelProto:
    return integer_convolutions(integer_linears(graph, layers), layers, graph, dynamic)


def reasons_for_float(graph: onnx.ModelProto) -> dict[str, str]:
    """Return reasons why layers that could be quantized gain nothing from integers, by name; only of such layers."""
    layers, _ = quantizable(graph)
    inferred = shapes(pinned(graph))

    def reason(layer: Layer) -> str:
        shape = inferred.get(layer.linear.input)
        if shape is None or None in shape:
            return "the shape of its input isn't known"
        if layer.linear.kind == "linear":
            one_row = "memory-bound: it multiplies one row per image"
            return one_row if len(shape) == 2 else ""
        if layer.name == "patch_embed.proj" and pointwise(layer.view):
            return IN_EVERY_BLOCK
        if layer.weight.shape[1] < 8 and not tiles(layer.view):
            return "its input has few channels; gathering rows would cost more than integers save"
        return ""

    return {layer.name: why for layer in layers if (why := reason(layer))}


VARIANTS: dict[str, Builder] = {
    "float": _float,
    "float-attention": _float_attention,
    "linears-int8": _integers(_whole(integer_linears)),
    "gemm-int8": _integers(_whole(gemm_linears)),
    "static-int8": _integers(_static_graph),
    "dynamic-int8": _integers(lambda graph, layers, *_: dynamic_linears(graph, layers), ("linear",), "dynamic"),
    "weights-int8": _integers(lambda graph, layers, *_: weight_only_linears(graph, layers), ("linear",), "float"),
}
