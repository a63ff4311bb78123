"""What a placement means each layer to run in: the plan that export proves and verify counts again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitedge.formats.artifact import LayerPlan

if TYPE_CHECKING:
    import onnx


def planned_layers(
    graph: onnx.ModelProto, precisions: Mapping[str, str], *, rest: str, reasons: Mapping[str, str] | None = None
) -> tuple[LayerPlan, ...]:
    """One plan for each node that multiplies and accumulates: Linear, Conv, and the products inside attention.

    Args:
        graph: the canonical float graph, symbolic batch.
        precisions: by layer name.
        rest: precision of every layer that ``precisions`` doesn't name.
        reasons: why a layer doesn't get the precision asked for, by layer name.
    """
    from vitedge.graph.surgery import linear_layers, macs

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
