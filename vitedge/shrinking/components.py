"""The components of a graph that can become narrower, the widths that may be chosen, and the graph at such widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.errors import UsageError, nearest
from vitedge.shrinking.embedding import NAME, Embedding, embedding_of
from vitedge.shrinking.rewrite import Rewriter, read_attention
from vitedge.shrinking.structures import Attention, Pair, Structure, structure_of, structures
from vitedge.shrinking.tokens import Tokens, offering, tokens_behind_blocks, with_merged

Kind = Literal["hidden", "query_key", "value", "heads", "branch", "channels", "tokens", "embedding"]
_GROUP, _WIDE_GROUP, _WIDE = 8, 16, 128  # kernels run best at widths that are multiples; of wide layers the second
_STEPS = 16  # at most as many widths are offered for a component, beside the present one
NONE: Mapping[str, Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True)
class Component:
    """A part of the model that can become narrower.

    The kinds, and what their widths count: ``hidden`` units of an MLP, ``channels`` between two convolutions,
    ``query_key`` and ``value`` channels of each head, ``heads`` of an attention, a whole ``branch``, 1 or 0, the
    ``tokens`` behind a block, and the channels of all tokens between the blocks, the ``embedding``.
    """

    name: str  # "blocks.3.mlp", "blocks.3.attn.query_key", "patch_embed.stem.0"
    kind: Kind
    width: int  # now
    offered: tuple[int, ...]  # widths that may be chosen, ascending, the present one last; 0: the branch goes


def components(model: onnx.ModelProto) -> list[Component]:
    """List what can become narrower, in graph order, and the widths to choose from.

    Args:
        model: a float graph whose nodes have unique names.

    Returns:
        Those with a choice. Names are the layers': a pair is called after its first layer without ``.fc1`` or
        ``.conv``, an attention after its projection without ``.proj``, with ``.heads``, ``.query_key`` or ``.value``,
        and tokens after their block, with ``.tokens``. The embedding comes last.
    """
    found = _all(structures(model), offering(tokens_behind_blocks(model)), embedding_of(model))
    return [each for each in found if len(each.offered) > 1]


def truncate(
    model: onnx.ModelProto, widths: Mapping[str, int], units: Mapping[str, Sequence[int]] = NONE
) -> onnx.ModelProto:
    """Return the graph at these widths without compensation: it takes as long as a shrunk graph.

    Args:
        model: a float graph.
        widths: by component; those that aren't named keep theirs.
        units: the units that stay, ascending, by component; of those that aren't named the first ones. Of queries and
            keys with a rotary embedding they are pairs.

    Raises:
        UsageError: no such component, or a width that it can't have.
    """
    check_widths(model, widths)
    for place in fewer_tokens(model, widths):
        model = with_merged(model, place.name, widths[place.name])
    rewriter = Rewriter(model)
    if (embedding := narrower_embedding(model, widths)) is not None:
        rewriter.embedding(embedding, np.eye(embedding.width)[:, : widths[embedding.name]])
        model, rewriter = rewriter.finished(), Rewriter(rewriter.model)
    for structure in changed(model, widths):
        if isinstance(structure, Pair) and {structure.first.name, structure.second.name} & rewriter.touched:
            structure = structure_of(rewriter.model, structure)  # the second layer of one, the first of the next
        if structure.residual is not None and structure.goes(widths):
            rewriter.without(structure.residual, None, convolution=structure.last.linear.kind == "conv")
        elif isinstance(structure, Attention):
            _truncate_attention(rewriter, structure, widths, units)
        elif isinstance(structure, Pair):
            kept = _units(structure.name, widths[structure.name], units)
            rows = (kept[:, None] * structure.rows + np.arange(structure.rows)).ravel()
            rewriter.pair(structure, kept, structure.second.matrix[rows], structure.second.bias)
    rewriter.absorb_means()
    return rewriter.finished()


def _units(name: str, width: int, units: Mapping[str, Sequence[int]]) -> NDArray[np.intp]:
    return np.asarray(units.get(name, range(width)), np.intp)


def changed(model: onnx.ModelProto, widths: Mapping[str, int]) -> list[Structure]:
    """Return the structures of a graph that these widths make narrower, in graph order."""
    return [
        each
        for each in structures(model)
        if any(widths.get(name, present) != present for name, present in each.present().items())
    ]


def fewer_tokens(model: onnx.ModelProto, widths: Mapping[str, int]) -> list[Tokens]:
    """Return the places where these widths merge tokens, in graph order."""
    return [each for each in tokens_behind_blocks(model) if widths.get(each.name, each.count) != each.count]


def narrower_embedding(model: onnx.ModelProto, widths: Mapping[str, int]) -> Embedding | None:
    """Return the embedding where these widths make it narrower."""
    found = embedding_of(model) if NAME in widths else None
    return found if found is not None and widths[NAME] != found.width else None


def _truncate_attention(
    rewriter: Rewriter, attention: Attention, widths: Mapping[str, int], units: Mapping[str, Sequence[int]]
) -> None:
    width, name, rotary = attention.widths(widths), attention.name, attention.rotary is not None
    pairs = channels = _units(f"{name}.query_key", width.query_key // 2 if rotary else width.query_key, units)
    if rotary:
        channels = np.concatenate([pairs, pairs + attention.query_key // 2])
    kept = _units(f"{name}.heads", width.heads, units)
    values = _units(f"{name}.value", width.value, units)
    weights = read_attention(attention).heads(kept)
    rows = (np.arange(width.heads)[:, None] * attention.value_width + values).ravel()
    weights = replace(
        weights,
        query=weights.query.channels(channels),
        key=weights.key.channels(channels),
        value=weights.value.channels(values),
        projection=weights.projection[rows],
    )
    rewriter.attention(attention, weights, pairs, kept)


def check_widths(model: onnx.ModelProto, widths: Mapping[str, int]) -> None:
    """Refuse widths that a graph can't have.

    Raises:
        UsageError: no such component, or a width below the least one (0 where the branch may go, 1 patch token beside
            those before the patches, 2 channels of the embedding, else 1), above the present one, or, of rotary queries
            and keys, odd.
    """
    action = "make a model narrower"
    found, places = structures(model), {each.name: each for each in tokens_behind_blocks(model)}
    embedding = embedding_of(model) if NAME in widths else None
    known = {each.name: each for each in _all(found, places.values(), embedding)}
    rotary = [each for each in found if isinstance(each, Attention) and each.rotary is not None]
    pairs = {f"{each.name}.query_key" for each in rotary}
    for name, width in widths.items():
        if name not in known:
            reason = f"the model has no component '{name}'{nearest(name, known)}"
            raise UsageError(action, reason, "choose one of the names that vitedge.shrinking.components lists")
        component, least = known[name], 0 if known[name].offered[0] == 0 else 1
        if name in places:
            least += places[name].prefix
        if name == NAME:
            least = 2  # of one channel, LayerNorm leaves nothing
        if not least <= width <= component.width or (name in pairs and width % 2):
            what = f"width of '{name}' ({component.kind.replace('_', '/')}) can be {least} to {component.width}"
            even = " and even, because a rotary embedding rotates pairs of channels" if name in pairs else ""
            raise UsageError(action, f"the {what}{even}, not {width}", "choose another width")


def _all(found: list[Structure], places: Iterable[Tokens], embedding: Embedding | None) -> Iterator[Component]:
    """Yield every component, those with a single width too."""
    for structure in found:
        gone = (0,) if structure.residual is not None else ()
        if isinstance(structure, Pair):
            kind: Kind = "channels" if structure.first.linear.kind == "conv" else "hidden"
            yield Component(structure.name, kind, structure.width, gone + _offered(structure.width))
        elif isinstance(structure, Attention):
            name, heads = structure.name, structure.heads
            yield Component(f"{name}.heads", "heads", heads, gone + tuple(range(1, heads + 1)))
            channels = (structure.query_key,) if structure.normed else _offered(structure.query_key)
            yield Component(f"{name}.query_key", "query_key", structure.query_key, channels)
            yield Component(f"{name}.value", "value", structure.value_width, _offered(structure.value_width))
        else:
            yield Component(structure.name, "branch", 1, (0, 1))
    for place in places:
        yield Component(place.name, "tokens", place.count, place.offered)
    if embedding is not None:
        least = embedding.width / 4
        widths = tuple(width for width in _offered(embedding.width) if width >= least)
        yield Component(NAME, "embedding", embedding.width, widths)


def _offered(width: int) -> tuple[int, ...]:
    """Return the widths to offer: at most 16 multiples of the group size that suits kernels, and the present width."""
    group = _GROUP if width < _WIDE else _WIDE_GROUP
    step = max(group, -(-width // (_STEPS * group)) * group)
    return (*range(step, width, step), width)
