"""Why an artifact is as fast and as exact as it is: each layer's precision, cost and reason, and sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from vitedge.benchmarking.profile import by_part, profile_of
from vitedge.benchmarking.profile import placed as parts
from vitedge.core.schema import Record
from vitedge.formats.target import DOT_PRODUCTS, QUANTIZED

if TYPE_CHECKING:
    from vitedge.formats.artifact import LayerPlan, Manifest
    from vitedge.formats.samples import Layer, Profile
    from vitedge.runtimes.base import LayerTime

#: Operators that only move data, by the runtimes' own words.
_MOVING = ("Transpose", "Reorder", "Reshape", "Reformat", "Permute")
_WORTH_SAYING = 0.03  # of the whole time
_FASTER = 1.05  # less than this is no gain
_LAYERS = ("patch embedding", "attention", "mlp", "head", "fused")
_ATTENTION = re.compile(r"Attention|MHA|Subgraph|Snippet", re.IGNORECASE)
_BLOCK = re.compile(r"blocks\.\d+\.")


class LayerExplained(Record):
    """One layer: what it was planned in, what that costs and brings, and why."""

    name: str
    precision: str
    share_of_macs: float
    sensitivity: float | None  # mean KL to the float logits with its group alone quantized; None: not scanned
    before_us: float | None  # in the float graph; None: not profiled, or no node tells its name
    after_us: float | None
    reason: str


class Explained(Record):
    """Layers in the order of the graph, and what follows from them in sentences."""

    artifact: str
    layers: tuple[LayerExplained, ...]
    sentences: tuple[str, ...]


def explain(
    artifact: str,
    manifest: Manifest,
    before: Sequence[Sequence[LayerTime]] = (),
    after: Sequence[Sequence[LayerTime]] = (),
    isa: Sequence[str] | None = None,
) -> Explained:
    """Put together what the manifest and the profiles say.

    Args:
        artifact: its name, for the reader.
        manifest: of the artifact.
        before: profiled inferences of the float graph on this machine; empty where it doesn't run here.
        after: profiled inferences of the artifact.
        isa: the processor's instruction sets that matter; None: unknown, or it isn't the processor that computes.
    """
    return explain_profiles(
        artifact, manifest.precision, manifest.layers, profile_of(before), profile_of(after), isa=isa
    )


def explain_profiles(
    artifact: str,
    precision: str,
    plan: Sequence[LayerPlan],
    plain: Profile | None,
    lowered: Profile | None,
    isa: Sequence[str] | None = None,
) -> Explained:
    """As :func:`explain`, of a plan and of profiles as results have them."""
    total = sum(layer.macs for layer in plan) or 1
    times = [_by_layer(profile, plan) for profile in (plain, lowered)]
    layers = tuple(
        LayerExplained(
            name=layer.name,
            precision=layer.precision,
            share_of_macs=layer.macs / total,
            sensitivity=layer.sensitivity,
            before_us=times[0].get(layer.name),
            after_us=times[1].get(layer.name),
            reason=layer.reason,
        )
        for layer in plan
    )
    sentences = [*_precisions(plan, total)]
    if plain is not None and lowered is not None:
        sentences += _speed(plain, lowered, plan, precision, isa)
    sentences += _sensitivities(plan)
    return Explained(artifact=artifact, layers=layers, sentences=tuple(sentences))


def _by_layer(profile: Profile | None, layers: Sequence[LayerPlan]) -> dict[str, float]:
    """Median microseconds by planned layer; a node of several layers counts for the first."""
    if profile is None:
        return {}
    names = {layer.name for layer in layers}
    found: dict[str, float] = {}
    for node in profile.layers:
        name = node.name.split("+")[0]
        if name in names:
            found[name] = found.get(name, 0.0) + median(node.ns) / 1e3
    return found


def _precisions(layers: Sequence[LayerPlan], total: int) -> list[str]:
    """How much runs in what, and why the rest doesn't."""
    quantized = [layer for layer in layers if layer.precision in QUANTIZED]
    if not quantized:
        return ["Nothing is quantized."]
    share = sum(layer.macs for layer in quantized) / total
    said = [
        f"{share:.0%} of the multiply-accumulates are in {quantized[0].precision}: {len(quantized)} of {len(layers)} "
        "layers and products."
    ]
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.precision not in QUANTIZED and layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        verb = "stays" if len(names) == 1 else "stay"
        said.append(f"{', '.join(names[:3])}{rest} {verb} in float: {reason}.")
    return said


def _speed(
    plain: Profile, lowered: Profile, plan: Sequence[LayerPlan], precision: str, isa: Sequence[str] | None
) -> list[str]:
    """What became faster or slower, part by part, by the runtime's own profile."""
    before, after = by_part(plain), by_part(lowered)
    whole, now = sum(before.values()), sum(after.values())
    ratio = whole / now if now else 1.0
    verdict = f"{ratio:.2f}× as fast as" if ratio >= 1 else f"{1 / ratio:.2f}× slower than"
    said = [
        f"{precision} is {verdict} float32 here, by the runtime's profile of its nodes: "
        f"{whole / 1e6:.2f} ms before, {now / 1e6:.2f} ms after."
    ]
    changes = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in {*before, *after}}
    for part, change in sorted(changes.items(), key=lambda entry: entry[1]):
        if part != "quantize" and abs(change) >= _WORTH_SAYING * whole:
            word = "saves" if change < 0 else "costs"
            said.append(
                f"{part}: {before.get(part, 0.0) / 1e3:.0f} µs before, {after.get(part, 0.0) / 1e3:.0f} after: "
                f"{word} {abs(change) / 1e3:.0f} µs."
            )
    rounding = [place.layer for place in parts(lowered) if place.part == "quantize"]
    if rounding:
        said.append(f"Quantizing and dequantizing in between, {_nodes(rounding)}: {_spent(rounding)}.")
    moving, moved = _movers(lowered), _movers(plain)
    if moving:
        was = f"float32 has {len(moved)}, {_us(moved)} µs" if moved else "float32 has none"
        said.append(f"Only moving data (transposes, reorders), {_nodes(moving)}: {_spent(moving)}; {was}.")
    said += _fused(lowered, plan)
    return said + _why_not_faster(plain, lowered, ratio, precision, isa)


def _why_not_faster(
    plain: Profile, lowered: Profile, ratio: float, precision: str, isa: Sequence[str] | None
) -> list[str]:
    """What eats the gain where there is next to none: slower layers, rounding in between, moving; largest first."""
    if ratio >= _FASTER:
        return []

    def heavy(profile: Profile) -> float:
        return sum(place.median_ns for place in parts(profile) if place.part in _LAYERS) - _ns(_movers(profile))

    layers = heavy(lowered) - heavy(plain)
    rounding = sum(place.median_ns for place in parts(lowered) if place.part == "quantize")
    moving = _ns(_movers(lowered)) - _ns(_movers(plain))
    causes = [
        (layers, f"the layers themselves take {layers / 1e3:.0f} µs more in it"),
        (rounding, f"quantizing in between takes {rounding / 1e3:.0f} µs"),
        (moving, f"moving data takes {moving / 1e3:.0f} µs more"),
    ]
    told = [text for ns, text in sorted(causes, reverse=True) if ns > 0]
    if layers < 0:
        told.append(f"and the layers save only {-layers / 1e3:.0f} µs")
    slower = "isn't faster" if ratio >= 1 else "is slower"
    said = [f"{precision} {slower} here because {', '.join(told)}."] if told else []
    if isa is not None and not set(isa) & set(DOT_PRODUCTS):
        said.append("This processor has no instruction that adds products of bytes in 32 bits (VNNI, dotprod, i8mm).")
    return said


def _movers(profile: Profile) -> list[Layer]:
    """Nodes that only move data; what quantizes on the way counts as quantizing."""
    return [
        place.layer
        for place in parts(profile)
        if place.part != "quantize" and any(word in place.layer.operator for word in _MOVING)
    ]


def _ns(nodes: Sequence[Layer]) -> float:
    return sum(median(node.ns) for node in nodes)


def _us(nodes: Sequence[Layer]) -> str:
    return f"{_ns(nodes) / 1e3:.0f}"


def _nodes(nodes: Sequence[Layer]) -> str:
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def _spent(nodes: Sequence[Layer]) -> str:
    """Microseconds of all, and where most of them are spent: blocks are added up."""
    places: dict[str, float] = {}
    for node in nodes:
        name = _BLOCK.sub("blocks.*.", node.name)
        places[name] = places.get(name, 0.0) + median(node.ns)
    most = sorted(places.items(), key=lambda entry: -entry[1])[:3]
    where = ", ".join(f"{name} ({ns / 1e3:.0f})" for name, ns in most)
    return f"{_us(nodes)} µs, {'most of it at' if len(places) > 3 else 'at'} {where}"


def _fused(profile: Profile, plan: Sequence[LayerPlan]) -> list[str]:
    """Nodes that are several of the model's layers, by the operator that they became."""
    kinds: dict[str, list[str]] = {}
    for layer in profile.layers:
        if "+" in layer.name:
            kinds.setdefault(layer.operator, []).append(layer.name)
    said = [
        f"Fused: {len(names)} × {operator}, each several of the model's layers in one, such as {names[0]}."
        for operator, names in kinds.items()
    ]
    named = {name for layer in profile.layers for name in layer.name.split("+")}
    inside: dict[str, dict[str, list[str]]] = {}
    for missing in (layer.name for layer in plan if layer.name not in named):
        group = missing.rpartition(".")[0]
        for node in profile.layers:
            if node.name.rpartition(".")[0] == group and _ATTENTION.search(node.operator):
                inside.setdefault(node.operator, {}).setdefault(node.name, []).append(_BLOCK.sub("blocks.*.", missing))
                break
    for operator, nodes in inside.items():
        words = " and ".join(dict.fromkeys(name for names in nodes.values() for name in names))
        said.append(f"Fused: {len(nodes)} × {operator}, with {words} inside.")
    return said


def _sensitivities(layers: Sequence[LayerPlan]) -> list[str]:
    """Which groups the accuracy hangs on."""
    groups = {layer.name.rpartition(".")[0] or layer.name: layer.sensitivity for layer in layers}
    known = sorted(((value, name) for name, value in groups.items() if value is not None), reverse=True)
    if not known:
        return []
    worst = ", ".join(f"{name} (KL {value:.2g})" for value, name in known[:3])
    return [f"Rounding costs most in {worst}; least in {known[-1][1]} (KL {known[-1][0]:.2g})."]
