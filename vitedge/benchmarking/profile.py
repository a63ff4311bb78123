"""Map a runtime's profile to the model's blocks by the names of the nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from vitedge.formats.samples import Layer, Profile

if TYPE_CHECKING:
    from vitedge.runtimes.base import LayerTime

REPEATS = 20

#: Parts of a ViT in reading order; ``fused`` computes several of the heavy ones in one, ``other`` is what neither name
#: nor operator tells.
PARTS = ("input", "patch embedding", "norm", "attention", "mlp", "residual", "quantize", "head", "fused", "other")
_HEAVY = ("patch embedding", "attention", "mlp", "head")

_QUANTIZE = re.compile(r"^(Dynamic)?(De)?[Qq]uantize(Linear)?$|^FakeQuantize$|^(Q|DQ)$|Quantize(d)?Scale")
_QUANTIZE_NAME = re.compile(r"[._](q|dq|quantize|dequantize)(_\w*)?$")
_NORM = re.compile(r"LayerNorm|^MVN$|Normalization|^(Skip)?RMSNorm", re.IGNORECASE)
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_BETWEEN = re.compile(r"\.\.\.|[+,\s\[\]{}]+")  # the names of what was fused, as runtimes join them
_NAMES = (  # the first that matches the canonical name
    (re.compile(r"\bnorm\d*\b"), "norm"),
    (re.compile(r"\b(attn|attention)\b"), "attention"),
    (re.compile(r"\bmlp\b"), "mlp"),
    (re.compile(r"\b(add\d|ls\d|residual)"), "residual"),
    (re.compile(r"\b(patch_embed|cls_token|pos_embed|reg_token|tokens)\b"), "patch embedding"),
    (re.compile(r"^image\b"), "input"),
    (re.compile(r"\b(head|pool|logits|fc_norm)\b"), "head"),
)


class LocatedLayer(NamedTuple):
    """A layer, and the component of the model that it belongs to."""

    layer: Layer
    part: str  # one of :data:`PARTS`
    block: int | None  # None outside the blocks

    @property
    def median_ns(self) -> float:
        """The median over the profiled inferences."""
        return median(self.layer.ns)


def profile_of(rounds: Sequence[Sequence[LayerTime]]) -> Profile | None:
    """Return the profiled inferences as columns, one for each node; None where the runtime gives no times.

    Rounds that ran other nodes than most are left out.
    """
    shapes = Counter(tuple((node.name, node.operator, node.type) for node in nodes) for nodes in rounds)
    if not shapes or not (shape := shapes.most_common(1)[0][0]):
        return None
    complete = [nodes for nodes in rounds if tuple((node.name, node.operator, node.type) for node in nodes) == shape]
    return Profile(
        layers=tuple(
            Layer(name=name, operator=operator, type=type_, ns=tuple(nodes[number].ns for nodes in complete))
            for number, (name, operator, type_) in enumerate(shape)
        )
    )


def located(profile: Profile) -> list[LocatedLayer]:
    """Return every layer with its part and block, in the order of execution.

    A runtime's own nodes (``MVN.85``, ``gemm_input_reshape``) have no canonical name: the operator may tell the part,
    the next named node tells the rest. What follows such a norm without a name (its scale and shift) is the norm's.
    """
    layers: list[LocatedLayer] = []
    part, block = "other", None
    for layer in reversed(profile.layers):
        named_part = _part_of_name(layer.name)
        if named_part is not None:
            part, block = named_part, _block_of_name(layer.name)
        layers.append(LocatedLayer(layer, _part_of_operator(layer) or part, block))
    layers.reverse()
    for number in range(1, len(layers)):
        previous, this = layers[number - 1], layers[number]
        unnamed = _part_of_name(this.layer.name) is None and _part_of_operator(this.layer) is None
        if unnamed and previous.part == "norm" and _part_of_name(previous.layer.name) is None:
            layers[number] = this._replace(part="norm")
    return layers


def _part_of_operator(layer: Layer) -> str | None:
    if _QUANTIZE.search(layer.operator) or (layer.type == "" and _QUANTIZE_NAME.search(layer.name)):
        return "quantize"
    return "norm" if _NORM.search(layer.operator) else None


def _part_of_name(name: str) -> str | None:
    """Return the part that a name tells; of several fused ones the heavy one, or ``fused`` where several are heavy."""
    names = [word for word in _BETWEEN.split(name) if word]
    parts = dict.fromkeys(part for word in names if (part := _part_of_word(word, alone=len(names) == 1)) is not None)
    heavy = [part for part in parts if part in _HEAVY]
    if len(heavy) > 1:
        return "fused"
    return next(iter(heavy or parts), None)


def _part_of_word(word: str, *, alone: bool) -> str | None:
    if not alone and _QUANTIZE_NAME.search(word):
        return "quantize"
    return next((part for pattern, part in _NAMES if pattern.search(word)), None)


def _block_of_name(name: str) -> int | None:
    """Return the one block that contains the whole node; None where it's in several, or in none."""
    names = [word for word in _BETWEEN.split(name) if _part_of_word(word, alone=True) is not None]
    blocks = {int(match[1]) if (match := _BLOCK.search(word)) else None for word in names}
    return blocks.pop() if len(blocks) == 1 else None


def by_part(profile: Profile) -> dict[str, float]:
    """Return the nanoseconds of each part, the medians of its layers added, in the order of :data:`PARTS`."""
    sums = dict.fromkeys(PARTS, 0.0)
    for each in located(profile):
        sums[each.part] += each.median_ns
    return {part: ns for part, ns in sums.items() if ns}


def by_block(profile: Profile) -> dict[int | None, dict[str, float]]:
    """Return nanoseconds by block (None outside the blocks) and part."""
    sums: dict[int | None, dict[str, float]] = {}
    for each in located(profile):
        parts = sums.setdefault(each.block, {})
        parts[each.part] = parts.get(each.part, 0.0) + each.median_ns
    return sums
