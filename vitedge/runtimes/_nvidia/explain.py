"""``--explain``: what an engine does with a graph, in sentences, from its layer information and a profile of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import field

from vitedge.core.schema import Record
from vitedge.formats.artifact import LayerPlan
from vitedge.runtimes._nvidia.layers import Layer
from vitedge.runtimes.base import Executed, LayerTime
from vitedge.runtimes.executed import UNKNOWN, executed_types


class Explanation(Record):
    """An engine's layers, counted and timed. Fractions sum to 1, and are of the time where a profile was taken."""

    layers: int
    type_fractions: dict[str, float] = field(name="shares")  # by type
    timed: bool
    planned: dict[str, int]  # layers of the plan by the precision that was planned
    obtained: dict[str, int]  # and by the precision that they run in
    reformats: int
    reformats_fraction: float = field(name="reformats_share")
    around_attention: int  # reformats next to an attention
    attentions: int
    fused: int  # attentions that are one kernel
    ns: int | None = None  # of one inference, all layers together

    @property
    def sentences(self) -> tuple[str, ...]:
        """The same in words."""
        return tuple(_sentences(self))


def explain(
    layers: Sequence[Layer], plan: Sequence[LayerPlan], profile: Sequence[Sequence[LayerTime]] = ()
) -> Explanation:
    """Count (and time) an engine's layers.

    Args:
        layers: in the order of execution, as :func:`vitedge.runtimes._nvidia.layers.parse` gives them.
        plan: the manifest's layers.
        profile: of :meth:`vitedge.runtimes.base.Backend.profile`, where a layer goes by the nodes in it.
    """
    times = _medians(profile)
    weights = [float(times.get("+".join(layer.nodes) or layer.name, 0)) if times else 1.0 for layer in layers]
    total = sum(weights) or 1.0
    type_fractions: Counter[str] = Counter()
    for layer, weight in zip(layers, weights, strict=True):
        type_fractions["moving" if layer.reformats else layer.type or UNKNOWN] += weight / total  # type: ignore[assignment]
    nodes = [Executed(node, layer.kind, layer.type) for layer in layers for node in layer.nodes]
    attentions = {name.rsplit(".", 1)[0] for name in (one.name for one in plan) if name.endswith(".scores")}
    fused = {node.rsplit(".", 1)[0] for layer in layers if layer.attends for node in layer.nodes} & attentions
    return Explanation(
        layers=len(layers),
        type_fractions=dict(sorted(type_fractions.items(), key=lambda item: -item[1])),
        timed=bool(times),
        planned=dict(Counter(layer.precision for layer in plan)),
        obtained=dict(Counter(executed_types(plan, nodes).values())),
        reformats=sum(layer.reformats for layer in layers),
        reformats_fraction=sum(w for layer, w in zip(layers, weights, strict=True) if layer.reformats) / total,
        around_attention=_around(layers),
        attentions=len(attentions),
        fused=len(fused),
        ns=sorted(sum(layer.ns for layer in inference) for inference in profile)[len(profile) // 2] if times else None,
    )


def compare(named: Mapping[str, Explanation]) -> list[str]:
    """Sentences on why one engine is slower than the fastest; empty unless two were timed."""
    timed = {name: one for name, one in named.items() if one.ns}
    if len(timed) < 2:
        return []
    best = min(timed, key=lambda name: timed[name].ns or 0)
    found = []
    for name, one in timed.items():
        if name == best:
            continue
        slower = (one.ns or 0) / (timed[best].ns or 1) - 1
        why = []
        if one.reformats > timed[best].reformats:
            near = f", {one.around_attention} of them next to attention," if one.around_attention else ""
            why.append(f"{one.reformats} reformats{near} take {one.reformats_fraction:.0%} of its time")
        if one.fused < timed[best].fused:
            why.append(f"{timed[best].fused - one.fused} of {one.attentions} attentions aren't fused")
        reason = "; ".join(why) or "its layers themselves are no faster, and the layer information shows no other cause"
        found.append(f"{name} is {slower:.0%} slower than {best} here: {reason}.")
    return found


def _sentences(one: Explanation) -> list[str]:
    of = "the time" if one.timed else f"its {one.layers} layers"
    words = ", ".join(f"{fraction:.0%} {name}" for name, fraction in one.type_fractions.items())
    found = [f"Of {of}: {words}."]
    missed = [
        f"{count - one.obtained.get(precision, 0)} of {count} layers planned in {precision} run in another type"
        for precision, count in sorted(one.planned.items())
        if one.obtained.get(precision, 0) < count
    ]
    found.append(f"{'; '.join(missed)}." if missed else "Every layer of the plan runs in its type.")
    if one.attentions:
        rest = "" if one.fused == one.attentions else "; the others are several kernels each"
        found.append(f"{one.fused} of {one.attentions} attentions run as one fused kernel{rest}.")
    if one.reformats:
        fraction = f", {one.reformats_fraction:.0%} of the time" if one.timed else ""
        near = f"; {one.around_attention} stand next to attention" if one.around_attention else ""
        found.append(f"{one.reformats} reformats move tensors between layouts or types{fraction}{near}.")
    else:
        found.append("No reformat stands between layers.")
    return found


def _around(layers: Sequence[Layer]) -> int:
    """Reformats directly before or after a layer with nodes of an attention."""

    def attention(layer: Layer) -> bool:
        return layer.attends or any(node.rsplit(".", 1)[-1] in ("scores", "context") for node in layer.nodes)

    return sum(
        layer.reformats and any(attention(near) for near in layers[max(0, at - 1) : at + 2])
        for at, layer in enumerate(layers)
    )


def _medians(profile: Sequence[Sequence[LayerTime]]) -> dict[str, int]:
    times: dict[str, list[int]] = {}
    for inference in profile:
        for layer in inference:
            times.setdefault(layer.name, []).append(layer.ns)
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}
