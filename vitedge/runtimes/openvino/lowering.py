"""The graph as OpenVINO runs it fast: an intermediate representation (IR) of static batch.

==================  ===========================================================================================
variant             what it is
==================  ===========================================================================================
float               float32 throughout
bf16                the same graph; Linear, Conv and attention run in bfloat16 on processors that have it
linears-int8        Q/DQ around the inputs and weights of Linear layers, the rest float32. OpenVINO reads Q/DQ as
                    FakeQuantize, and its low-precision transformations make the layers INT8
linears-convs-int8  convolutions too; x86 alone has INT8 kernels for them
pointwise-int8      the same layers, and the linears as pointwise convolutions: the same arithmetic, 2.4 times as fast
                    without VNNI, where linears are slower in INT8 than in float32 and convolutions twice as fast
convs-int8          convolutions only
nncf-int8           what NNCF's preset for transformers makes of the float graph with the same pictures, where NNCF is
                    installed; the recipe has no part in it
==================  ===========================================================================================

With ``-rest-bf16`` behind it, a variant runs in bfloat16 what isn't quantized: attention above all. All but
``nncf-int8`` leave out unused tokens.

Processors without VNNI multiply u8 by s8 with ``vpmaddubsw``, which adds the products of neighbours in saturating 16
bits: full-range INT8 weights were measured to be wrong by up to half the largest output there. So neighbouring weights
add up to 128 at most, which was measured to be exact, unless a target promises an instruction set with 32-bit sums.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from vitedge.errors import UsageError
from vitedge.formats.target import Option
from vitedge.graph.surgery import copy, linear_layers, pin_batch, producers, to_bytes
from vitedge.graph.unused_tokens import without_unused_tokens
from vitedge.quantization.qdq import insert_qdq
from vitedge.quantization.rounding import QuantizedLayer, Scheme
from vitedge.quantization.views import Layer, quantizable
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.lowering import (
    IN_EVERY_BLOCK,
    checked_variant,
    integer_layers,
    planned_layers,
    quantized,
    variant_of,
)
from vitedge.runtimes.openvino import nncf
from vitedge.runtimes.openvino.bfloat16 import rounded
from vitedge.runtimes.openvino.detect import NAME, core, installed, load, package
from vitedge.runtimes.openvino.keys import with_keys_by_rows
from vitedge.runtimes.openvino.pointwise import pointwise_linears
from vitedge.runtimes.openvino.pooling import with_adds_behind_pools

#: Kinds of layers that each kernel variant quantizes.
VARIANTS: dict[str, tuple[str, ...]] = {
    "float": (),
    "bf16": (),
    "linears-int8": ("linear",),
    "linears-convs-int8": ("linear", "conv"),
    "pointwise-int8": ("linear", "conv"),
    "convs-int8": ("conv",),
    "nncf-int8": ("linear", "conv"),
}
_BFLOAT16 = "-rest-bf16"
VARIANTS |= {f"{name}{_BFLOAT16}": VARIANTS[name] for name in ("linears-convs-int8", "pointwise-int8", "nncf-int8")}
_BYTE_SCALE = 1 + 2.0**-20  # exact in float32
_MARK = "\N{SYMBOL FOR UNIT SEPARATOR}"


def lower(request: Request) -> Lowered:
    """Write the IR of one candidate, with the preprocessing contract in its runtime info; it's deterministic.

    Raises:
        UsageError: an unknown kernel variant, or one that finds nothing to quantize.
        NotInstalledError: OpenVINO isn't here; it alone writes its IR.
    """
    variant = checked_variant(request, VARIANTS, NAME)
    if package(variant):
        return _by_nncf(request)
    graph, layers, reasons = request.graph, dict[str, QuantizedLayer](), dict[str, str]()
    if VARIANTS[variant]:
        graph, layers, reasons = _quantized(request)
        if not layers:
            raise UsageError(
                variant_of(request),
                f"the model has no layer for it to quantize: {next(iter(reasons.values()), 'no layers at all')}",
                "use another target or precision",
            )
    graph = without_unused_tokens(graph)
    typed = insert_qdq(graph, layers) if layers else graph
    shaped = pointwise_linears(typed, graph, layers) if variant.startswith("pointwise") else typed
    named = _named(shaped, request.batch, graph)
    return _lowered(
        request,
        _ir(_read(named), named, request.metadata),
        dict.fromkeys(layers, "int8"),
        reasons,
        rounded(typed) if variant.endswith("bf16") else typed,
    )


def _by_nncf(request: Request) -> Lowered:
    """Quantize the float graph with NNCF, which chooses the layers; the planned layers are read from its result."""
    assert request.pictures is not None, "NNCF calibrates by itself"
    version = nncf.require(variant_of(request))
    named = _named(request.graph, request.batch, request.graph)
    every = [layer.name for layer in planned_layers(request.graph, {}, rest="")]
    operators = {f"{name}{_MARK}{suffix}": name for name in every for suffix in ("", "/WithoutBiases")}
    budgeted = {} if request.quantized is None else request.left_in_float(every)
    ignored = [key for key, name in operators.items() if name in budgeted]
    model = nncf.quantized(_read(named), request.pictures(), ignored, request.target.wide_sums)
    precisions = nncf.precisions(model, operators)
    reasons = {name: budgeted.get(name, "NNCF leaves it in float") for name in every if name not in precisions}
    files = _ir(model, named, request.metadata)
    return _lowered(request, files, precisions, reasons, None, {"nncf": version})


def _lowered(
    request: Request,
    files: tuple[bytes, bytes],
    precisions: Mapping[str, str],
    reasons: Mapping[str, str],
    interpretable: onnx.ModelProto | None,
    built_with: Mapping[str, str] | None = None,
) -> Lowered:
    variant = request.candidate.variant
    rest = "bf16" if variant.endswith("bf16") else "fp32"
    return Lowered(
        graph="model.xml",
        files=dict(zip(("model.xml", "model.bin"), files, strict=True)),
        layers=planned_layers(request.graph, precisions, rest=rest, reasons=reasons),
        runtime_options={**_options(rest, request.target.device), **request.target.options},
        built_with={"openvino": installed() or "", "onnx": str(onnx.__version__), **(built_with or {})},
        interpretable=interpretable,
    )


def _options(rest: str, device: str) -> dict[str, Option]:
    """Return the options that OpenVINO would otherwise choose by itself."""
    options: dict[str, Option] = {
        "INFERENCE_PRECISION_HINT": "bf16" if rest == "bf16" else "f32",
        "EXECUTION_MODE_HINT": "PERFORMANCE",  # only the hint above decides on precision
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    return {**options, "ENABLE_CPU_PINNING": False} if device == "CPU" else options


def _quantized(request: Request) -> tuple[onnx.ModelProto, dict[str, QuantizedLayer], dict[str, str]]:
    """Return the improved float graph, the variant's layers in integers, and why the other layers stay in float."""
    variant = request.candidate.variant
    layers, _ = quantizable(request.graph)
    reads_bytes = {layer.name for layer in layers[:1] if layer.linear.kind == "conv"}
    stay = () if variant.endswith(_BFLOAT16) else reads_bytes

    def why_float(layer: Layer) -> str:
        return IN_EVERY_BLOCK if layer.name in stay else ""

    names, reasons = integer_layers(request, VARIANTS[variant], why_float)
    scheme = Scheme("uint8", symmetric=False, wide_sums=request.target.wide_sums, plain_norms=True)
    graph, integers = quantized(request, scheme, names)
    return graph, {name: _kept(layer) for name, layer in integers.items()}, reasons


def _kept(layer: QuantizedLayer) -> QuantizedLayer:
    """Return a layer whose input's quantization OpenVINO keeps: it takes that of the picture's own bytes away.

    Their scale is 1 and their zero point 0, so quantizing them changes nothing, and the convolution would run in
    bfloat16. At a scale that is 1e-6 larger every byte still rounds to itself.
    """
    identity = (layer.input_scale, layer.input_zero_point) == (1, 0)
    return replace(layer, input_scale=_BYTE_SCALE) if identity else layer


def _named(typed: onnx.ModelProto, batch: int, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return what OpenVINO reads of a typed graph, which was made of the float ``graph``."""
    return _unambiguous(pin_batch(with_keys_by_rows(with_adds_behind_pools(typed)), batch), _biases(graph))


def _biases(graph: onnx.ModelProto) -> dict[str, str]:
    """Return the names of the layers' bias Adds, and their new names."""
    return {layer.bias_node.name: f"{layer.name}.bias" for layer in linear_layers(graph) if layer.bias_node}


def _unambiguous(graph: onnx.ModelProto, biases: Mapping[str, str]) -> onnx.ModelProto:
    """Rename for OpenVINO: no constant shares a node's name, and the bias Add of layer X is called X.bias.

    OpenVINO makes equal names different with suffixes, and after fusing MatMul and Add only the Add's name is left.
    Nodes get a mark, so that no name of the graph's ("MatMul_7") is taken for one that OpenVINO made up.
    """
    graph = copy(graph)
    constants = {tensor.name for tensor in graph.graph.initializer}
    for tensor in graph.graph.initializer:
        tensor.name += ".value"
    for node in graph.graph.node:
        node.name = biases.get(node.name, node.name) + _MARK
        for index, name in enumerate(node.input):
            if name in constants:
                node.input[index] = f"{name}.value"
    return graph


def _read(graph: onnx.ModelProto) -> Any:
    return core().read_model(to_bytes(graph))


def _ir(model: Any, graph: onnx.ModelProto, metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Return XML and weights of a model that was read from ``graph``.

    Names that OpenVINO made up are made anew from the graph's own order, so equal graphs are equal. OpenVINO also names
    the last operation after its tensor; the node's own name is given back.
    """
    writers = producers(graph)
    for output, result in zip(graph.graph.output, model.get_results(), strict=True):
        result.input_value(0).get_node().set_friendly_name(writers[output.name].name)
    for index, operation in enumerate(model.get_ordered_ops()):
        type_, name = operation.get_type_name(), operation.get_friendly_name()
        made_up = re.fullmatch(rf"{type_}_\d+", name)
        operation.set_friendly_name(f"{type_}.{index}" if made_up else name.replace(_MARK, ""))
    for key, value in metadata.items():
        model.set_rt_info(value, key.split("."))
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        xml = Path(folder) / "model.xml"
        load().save_model(model, xml, compress_to_fp16=False)
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()
