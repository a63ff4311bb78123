"""Why an artifact is as fast and as exact as it is: each layer's precision, cost and reason, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from vitedge.harness.profile import by_part, profile_of
from vitedge.schema import Record
from vitedge.target import QUANTIZED

if TYPE_CHECKING:
    from vitedge.artifact import LayerPlan, Manifest
    from vitedge.latency import Profile
    from vitedge.runtimes.contract import LayerTime

#: Operators that only move data, by the runtimes' own words.
_MOVING = ("Transpose", "Reorder", "Reshape", "Reformat", "Permute")
_WORTH_SAYING = 0.03  # of the whole time


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
) -> Explained:
    """Put together what the manifest and the profiles say.

    Args:
        artifact: its name, for the reader.
        manifest: of the artifact.
        before: profiled inferences of the float graph on this machine; empty where it doesn't run here.
        after: profiled inferences of the artifact.
    """
    plain, placed = profile_of(before), profile_of(after)
    total = sum(layer.macs for layer in manifest.layers) or 1
    times = [_by_layer(profile, manifest.layers) for profile in (plain, placed)]
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
        for layer in manifest.layers
    )
    sentences = [*_precisions(manifest.layers, total)]
    if plain is not None and placed is not None:
        sentences += _speed(plain, placed, manifest.precision)
    sentences += _sensitivities(manifest.layers)
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


def _speed(plain: Profile, placed: Profile, precision: str) -> list[str]:
    """What became faster or slower, part by part, by the runtime's own profile."""
    before, after = by_part(plain), by_part(placed)
    whole, now = sum(before.values()), sum(after.values())
    ratio = whole / now if now else 1.0
    verdict = f"{ratio:.2f}× as fast as" if ratio >= 1 else f"{1 / ratio:.2f}× slower than"
    said = [
        f"{precision} is {verdict} float32 here, by the runtime's profile of its nodes: "
        f"{whole / 1e6:.2f} ms before, {now / 1e6:.2f} ms after."
    ]
    changes = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in {*before, *after}}
    for part, change in sorted(changes.items(), key=lambda entry: entry[1]):
        if abs(change) < _WORTH_SAYING * whole:
            continue
        if part == "quantize":
            said.append(f"Quantizing and dequantizing in between costs {change / 1e3:.0f} µs.")
        else:
            word = "saves" if change < 0 else "costs"
            said.append(
                f"{part}: {before.get(part, 0.0) / 1e3:.0f} µs before, {after.get(part, 0.0) / 1e3:.0f} after: "
                f"{word} {abs(change) / 1e3:.0f} µs."
            )
    moving = [layer for layer in placed.layers if any(word in layer.operator for word in _MOVING)]
    if moving:
        spent = sum(median(layer.ns) for layer in moving)
        said.append(f"Nodes that only move data (transposes, reorders): {len(moving)}, {spent / 1e3:.0f} µs.")
    fused = [layer for layer in placed.layers if "+" in layer.name]
    if fused:
        said.append(f"Nodes that are several of the model's layers in one: {len(fused)}, such as {fused[0].name}.")
    return said


def _sensitivities(layers: Sequence[LayerPlan]) -> list[str]:
    """Which groups the accuracy hangs on."""
    groups = {layer.name.rpartition(".")[0] or layer.name: layer.sensitivity for layer in layers}
    known = sorted(((value, name) for name, value in groups.items() if value is not None), reverse=True)
    if not known:
        return []
    worst = ", ".join(f"{name} (KL {value:.2g})" for value, name in known[:3])
    return [f"Rounding costs most in {worst}; least in {known[-1][1]} (KL {known[-1][0]:.2g})."]
