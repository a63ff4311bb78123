"""Effective precision: the type that each planned layer really ran in, counted in the executed graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitedge.formats.artifact import LayerPlan
    from vitedge.runtimes.base import Executed

QUANTIZED = ("int8", "fp8")
UNKNOWN = "unknown"


def executed_types(layers: Sequence[LayerPlan], executed: Iterable[Executed]) -> dict[str, str]:
    """Return the type that each planned layer was executed in, or "unknown".

    A runtime may execute a layer as several nodes of its name; the planned type counts when one of them has it.
    """
    types_of: dict[str, set[str]] = {}
    for node in executed:
        types_of.setdefault(node.name, set()).add(node.type)
    types = {}
    for layer in layers:
        executed_in = types_of.get(layer.name, set()) - {""}
        types[layer.name] = layer.precision if layer.precision in executed_in else min(executed_in, default=UNKNOWN)
    return types


def unmet_layers(layers: Sequence[LayerPlan], executed: Iterable[Executed]) -> list[str]:
    """Return the planned layers that didn't run as planned, as ``name: planned, executed``.

    Where the runtime doesn't tell a type, a float layer counts as met, and a quantized one doesn't: that has to be
    proven.
    """
    types = executed_types(layers, executed)
    return [
        f"{layer.name} in {types[layer.name]} instead of {layer.precision}"
        for layer in layers
        if types[layer.name] != layer.precision and (types[layer.name] != UNKNOWN or layer.precision in QUANTIZED)
    ]


def executed_fractions(layers: Sequence[LayerPlan], executed: Iterable[Executed]) -> dict[str, float] | None:
    """Return the fraction of the multiply-accumulates by executed type; sums to 1. None where no layer was planned."""
    return mac_fractions(layers, executed_types(layers, executed)) or None


def mac_fractions(layers: Sequence[LayerPlan], types: Mapping[str, str]) -> dict[str, float]:
    """Return fractions of the multiply-accumulates by type, sorted by type; they sum to 1. Empty without any."""
    total = sum(layer.macs for layer in layers)
    macs_of: dict[str, int] = {}
    for layer in layers:
        macs_of[types[layer.name]] = macs_of.get(types[layer.name], 0) + layer.macs
    return {type_: macs / total for type_, macs in sorted(macs_of.items())} if total else {}
