"""Explain speed and accuracy of an artifact: each layer's precision, time and reason, and sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from msgspec import field

from vitedge.benchmarking.profile import by_part, profile_of
from vitedge.benchmarking.profile import located as parts
from vitedge.core.schema import Record
from vitedge.formats.target import DOT_PRODUCTS, QUANTIZED

if TYPE_CHECKING:
    from vitedge.formats.artifact import LayerPlan, Manifest
    from vitedge.formats.samples import Layer, Profile
    from vitedge.runtimes.base import LayerTime

#: Operators that only move data, in the runtimes' own terms.
_MOVING = ("Transpose", "Reorder", "Reshape", "Reformat", "Permute")
_NOTICEABLE = 0.03  # fraction of the whole time
_FASTER = 1.05  # a smaller ratio of times is no gain
_LAYERS = ("patch embedding", "attention", "mlp", "head", "fused")
_ATTENTION = re.compile(r"Attention|MHA|Subgraph|Snippet", re.IGNORECASE)
_BLOCK = re.compile(r"blocks\.\d+\.")


class LayerExplained(Record):
    """One layer: its planned precision, its sensitivity and time, and the reason."""

    name: str
    precision: str
    fraction_of_macs: float = field(name="share_of_macs")
    sensitivity: float | None  # mean KL to the float logits with its group alone quantized; None: not scanned
    before_us: float | None  # in the float graph; None: not profiled, or no node tells its name
    after_us: float | None
    reason: str


class Explained(Record):
    """The layers in the order of the graph, and the conclusions in sentences."""

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
    """Explain an artifact by its manifest and profiles.

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
    float_profile: Profile | None,
    profile: Profile | None,
    isa: Sequence[str] | None = None,
) -> Explained:
    """Explain as :func:`explain` does, from a plan and from profiles as results have them."""
    total = sum(layer.macs for layer in plan) or 1
    times = [_by_layer(profile, plan) for profile in (float_profile, profile)]
    layers = tuple(
        LayerExplained(
            name=layer.name,
            precision=layer.precision,
            fraction_of_macs=layer.macs / total,
            sensitivity=layer.sensitivity,
            before_us=times[0].get(layer.name),
            after_us=times[1].get(layer.name),
            reason=layer.reason,
        )
        for layer in plan
    )
    sentences = [*_precisions(plan, total)]
    if float_profile is not None and profile is not None:
        sentences += _speed(float_profile, profile, plan, precision, isa)
    sentences += _sensitivities(plan)
    return Explained(artifact=artifact, layers=layers, sentences=tuple(sentences))


def _by_layer(profile: Profile | None, layers: Sequence[LayerPlan]) -> dict[str, float]:
    """Return median microseconds by planned layer; a node of several layers counts for the first."""
    if profile is None:
        return {}
    names = {layer.name for layer in layers}
    times_us: dict[str, float] = {}
    for node in profile.layers:
        name = node.name.split("+")[0]
        if name in names:
            times_us[name] = times_us.get(name, 0.0) + median(node.ns) / 1e3
    return times_us


def _precisions(layers: Sequence[LayerPlan], total: int) -> list[str]:
    """Tell how much is quantized, and why the rest isn't."""
    quantized = [layer for layer in layers if layer.precision in QUANTIZED]
    if not quantized:
        return ["Nothing is quantized."]
    fraction = sum(layer.macs for layer in quantized) / total
    sentences = [
        f"{fraction:.0%} of the multiply-accumulates are in {quantized[0].precision}: {len(quantized)} of "
        f"{len(layers)} layers and products."
    ]
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.precision not in QUANTIZED and layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        verb = "stays" if len(names) == 1 else "stay"
        sentences.append(f"{', '.join(names[:3])}{rest} {verb} in float: {reason}.")
    return sentences


def _speed(
    float_profile: Profile, profile: Profile, plan: Sequence[LayerPlan], precision: str, isa: Sequence[str] | None
) -> list[str]:
    """Tell which parts became faster or slower, by the runtime's own profile."""
    before, after = by_part(float_profile), by_part(profile)
    total_before, total_after = sum(before.values()), sum(after.values())
    ratio = total_before / total_after if total_after else 1.0
    verdict = f"{ratio:.2f}× as fast as" if ratio >= 1 else f"{1 / ratio:.2f}× slower than"
    sentences = [
        f"{precision} is {verdict} float32 here, by the runtime's profile of its nodes: "
        f"{total_before / 1e6:.2f} ms before, {total_after / 1e6:.2f} ms after."
    ]
    changes = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in {*before, *after}}
    for part, change in sorted(changes.items(), key=lambda entry: entry[1]):
        if part != "quantize" and abs(change) >= _NOTICEABLE * total_before:
            verb = "saves" if change < 0 else "costs"
            sentences.append(
                f"{part}: {before.get(part, 0.0) / 1e3:.0f} µs before, {after.get(part, 0.0) / 1e3:.0f} after: "
                f"{verb} {abs(change) / 1e3:.0f} µs."
            )
    rounding = [place.layer for place in parts(profile) if place.part == "quantize"]
    if rounding:
        sentences.append(f"Quantizing and dequantizing in between, {_nodes(rounding)}: {_spent(rounding)}.")
    moving, moved = _movers(profile), _movers(float_profile)
    if moving:
        was = f"float32 has {len(moved)}, {_us(moved)} µs" if moved else "float32 has none"
        sentences.append(f"Only moving data (transposes, reorders), {_nodes(moving)}: {_spent(moving)}; {was}.")
    sentences += _fused(profile, plan)
    return sentences + _why_not_faster(float_profile, profile, ratio, precision, isa)


def _why_not_faster(
    float_profile: Profile, profile: Profile, ratio: float, precision: str, isa: Sequence[str] | None
) -> list[str]:
    """Give the reasons where there is no gain: slower layers, quantizing in between, moving data; the largest first."""
    if ratio >= _FASTER:
        return []

    def layers_ns(nodes: Profile) -> float:
        return sum(place.median_ns for place in parts(nodes) if place.part in _LAYERS) - _ns(_movers(nodes))

    layers = layers_ns(profile) - layers_ns(float_profile)
    rounding = sum(place.median_ns for place in parts(profile) if place.part == "quantize")
    moving = _ns(_movers(profile)) - _ns(_movers(float_profile))
    causes = [
        (layers, f"the layers themselves take {layers / 1e3:.0f} µs more in it"),
        (rounding, f"quantizing in between takes {rounding / 1e3:.0f} µs"),
        (moving, f"moving data takes {moving / 1e3:.0f} µs more"),
    ]
    reasons = [text for ns, text in sorted(causes, reverse=True) if ns > 0]
    if layers < 0:
        reasons.append(f"and the layers save only {-layers / 1e3:.0f} µs")
    slower = "isn't faster" if ratio >= 1 else "is slower"
    sentences = [f"{precision} {slower} here because {', '.join(reasons)}."] if reasons else []
    if isa is not None and not set(isa) & set(DOT_PRODUCTS):
        sentences.append(
            "This processor has no instruction that adds products of bytes in 32 bits (VNNI, dotprod, i8mm)."
        )
    return sentences


def _movers(profile: Profile) -> list[Layer]:
    """Return the nodes that only move data; nodes that quantize while moving count as quantizing."""
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
    """Return their total time, and the names that take most of it, added up over blocks."""
    places: dict[str, float] = {}
    for node in nodes:
        name = _BLOCK.sub("blocks.*.", node.name)
        places[name] = places.get(name, 0.0) + median(node.ns)
    most = sorted(places.items(), key=lambda entry: -entry[1])[:3]
    where = ", ".join(f"{name} ({ns / 1e3:.0f})" for name, ns in most)
    return f"{_us(nodes)} µs, {'most of it at' if len(places) > 3 else 'at'} {where}"


def _fused(profile: Profile, plan: Sequence[LayerPlan]) -> list[str]:
    """Return the nodes that combine several of the model's layers, by the operator that they became."""
    kinds: dict[str, list[str]] = {}
    for layer in profile.layers:
        if "+" in layer.name:
            kinds.setdefault(layer.operator, []).append(layer.name)
    sentences = [
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
        names_inside = " and ".join(dict.fromkeys(name for names in nodes.values() for name in names))
        sentences.append(f"Fused: {len(nodes)} × {operator}, with {names_inside} inside.")
    return sentences


def _sensitivities(layers: Sequence[LayerPlan]) -> list[str]:
    """Name the most and the least sensitive groups."""
    groups = {layer.name.rpartition(".")[0] or layer.name: layer.sensitivity for layer in layers}
    ordered = sorted(((value, name) for name, value in groups.items() if value is not None), reverse=True)
    if not ordered:
        return []
    worst = ", ".join(f"{name} (KL {value:.2g})" for value, name in ordered[:3])
    return [f"Rounding costs most in {worst}; least in {ordered[-1][1]} (KL {ordered[-1][0]:.2g})."]
