"""Code that the lowerings of several runtimes share: names of variants, the choice of integer layers, and the plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from vitedge.errors import UsageError, nearest
from vitedge.formats.artifact import LayerPlan
from vitedge.graph.surgery import linear_layers, macs
from vitedge.quantization.rounding import QuantizedLayer, Scheme, quantize_layers
from vitedge.quantization.views import Layer, quantizable

if TYPE_CHECKING:
    import onnx

    from vitedge.runtimes.base import Request

#: Why a layer in front of the blocks stays in float: the patch embedding behind a stem, or a stem's first convolution.
IN_EVERY_BLOCK = "its error would be in every block, and integers save next to nothing"


def variant_of(request: Request) -> str:
    """Return the subject of an error: the candidate's kernel variant and its target."""
    return f"kernel variant '{request.candidate.variant}' of target '{request.target.name}'"


def checked_variant(request: Request, variants: Iterable[str], runtime: str) -> str:
    """Return the name of the candidate's kernel variant.

    Args:
        request: the float graph and the candidate.
        variants: those that the runtime has.
        runtime: its name, for the error text.

    Raises:
        UsageError: it has none of this name; the nearest is given.
    """
    variant, variants = request.candidate.variant, list(variants)
    if variant not in variants:
        raise UsageError(
            variant_of(request),
            f"{runtime} has no kernel variant of this name{nearest(variant, variants)}",
            f"use one of {', '.join(variants)}",
        )
    return variant


def integer_layers(
    request: Request, kinds: Collection[str], why_float: Callable[[Layer], str]
) -> tuple[list[str], dict[str, str]]:
    """Return the layers that the kernel variant quantizes, in graph order, and why each other one stays in float.

    Args:
        request: the float graph, and the layers that may be quantized.
        kinds: "linear", "conv": what the variant quantizes.
        why_float: the runtime's own reason against a layer of these kinds; empty where there is none.
    """
    layers, reasons = quantizable(request.graph)
    for layer in layers:
        if layer.linear.kind not in kinds:
            reasons[layer.name] = f"the kernel variant {request.candidate.variant} leaves it in float"
        elif reason := why_float(layer):
            reasons[layer.name] = reason
    reasons |= request.left_in_float(layer.name for layer in layers if layer.name not in reasons)
    return [layer.name for layer in layers if layer.name not in reasons], reasons


def quantized(
    request: Request, scheme: Scheme, names: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, QuantizedLayer]]:
    """Return the improved float graph and the named layers in integers, by the request's statistics and recipe."""
    assert request.statistics is not None and request.recipe is not None, "a quantized candidate needs statistics"
    return quantize_layers(request.graph, request.statistics, request.recipe, scheme, names)


def planned_layers(
    graph: onnx.ModelProto, precisions: Mapping[str, str], *, rest: str, reasons: Mapping[str, str] | None = None
) -> tuple[LayerPlan, ...]:
    """Return the planned precision of each layer: export checks the plan, and verify counts it again.

    One entry for each node that multiplies and accumulates: Linear, Conv, and the products inside attention.

    Args:
        graph: the canonical float graph, symbolic batch.
        precisions: by layer name.
        rest: precision of every layer that ``precisions`` doesn't name.
        reasons: why a layer doesn't get the precision asked for, by layer name.
    """
    work = macs(graph)
    kinds = {layer.name: layer.kind for layer in linear_layers(graph)}
    return tuple(
        LayerPlan(
            name=node.name,
            kind=kinds.get(node.name, "attention"),
            precision=precisions.get(node.name, rest),
            macs=work.get(node.name, 0),
            reason=(reasons or {}).get(node.name, ""),
        )
        for node in graph.graph.node
        if node.name in kinds or node.name in work
    )
