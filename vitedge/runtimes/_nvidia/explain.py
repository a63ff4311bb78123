"""``--explain``: describe an engine's layers in sentences, from its layer information and a profile."""

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
        """Describe the engine in sentences."""
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
    attentions = {name.rsplit(".", 1)[0] for name in (layer.name for layer in plan) if name.endswith(".scores")}
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
    """Explain in sentences why one engine is slower than the fastest; empty unless two were timed."""
    timed = {name: explanation for name, explanation in named.items() if explanation.ns}
    if len(timed) < 2:
        return []
    best = min(timed, key=lambda name: timed[name].ns or 0)
    sentences = []
    for name, explanation in timed.items():
        if name == best:
            continue
        slower = (explanation.ns or 0) / (timed[best].ns or 1) - 1
        why = []
        if explanation.reformats > timed[best].reformats:
            near = (
                f", {explanation.around_attention} of them next to attention," if explanation.around_attention else ""
            )
            why.append(f"{explanation.reformats} reformats{near} take {explanation.reformats_fraction:.0%} of its time")
        if explanation.fused < timed[best].fused:
            why.append(f"{timed[best].fused - explanation.fused} of {explanation.attentions} attentions aren't fused")
        reason = "; ".join(why) or "its layers themselves are no faster, and the layer information shows no other cause"
        sentences.append(f"{name} is {slower:.0%} slower than {best} here: {reason}.")
    return sentences


def _sentences(explanation: Explanation) -> list[str]:
    of = "the time" if explanation.timed else f"its {explanation.layers} layers"
    fractions = ", ".join(f"{fraction:.0%} {name}" for name, fraction in explanation.type_fractions.items())
    sentences = [f"Of {of}: {fractions}."]
    missed = [
        f"{count - explanation.obtained.get(precision, 0)} of {count} layers planned in {precision} run in another type"
        for precision, count in sorted(explanation.planned.items())
        if explanation.obtained.get(precision, 0) < count
    ]
    sentences.append(f"{'; '.join(missed)}." if missed else "Every layer of the plan runs in its type.")
    if explanation.attentions:
        rest = "" if explanation.fused == explanation.attentions else "; the others are several kernels each"
        sentences.append(f"{explanation.fused} of {explanation.attentions} attentions run as one fused kernel{rest}.")
    if explanation.reformats:
        fraction = f", {explanation.reformats_fraction:.0%} of the time" if explanation.timed else ""
        near = f"; {explanation.around_attention} stand next to attention" if explanation.around_attention else ""
        sentences.append(f"{explanation.reformats} reformats move tensors between layouts or types{fraction}{near}.")
    else:
        sentences.append("No reformat stands between layers.")
    return sentences


def _around(layers: Sequence[Layer]) -> int:
    """Count reformats directly before or after a layer with nodes of an attention."""

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
    return {name: sorted(ns)[len(ns) // 2] for name, ns in times.items()}
