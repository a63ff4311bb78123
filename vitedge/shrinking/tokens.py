"""Merging tokens behind a block: where a graph permits it, which tokens become one, and the graph that merges them.

What becomes one is decided once, by what neighbouring patches are like on the calibration pictures, and is the same for
every picture: a product with a constant matrix, which is exact in every runtime. Groups grow as Ward's (1963) do, from
neighbours in the picture alone; a token that is left is the mean of the patches that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.graph import merging
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import Index, set_constant
from vitedge.graph.surgery import array, initializers, pinned, shapes

Float64 = NDArray[np.float64]
Groups = list[list[int]]

_PLACES = 3  # blocks behind which merging is offered
_FRACTIONS = (0.25, 0.5, 0.75)  # of the patch tokens, which may be kept
_FEWEST = 16  # fewer patch tokens aren't worth merging


@dataclass(frozen=True)
class Tokens:
    """The tokens behind a block of a graph that vitedge wrote."""

    name: str  # "blocks.3.tokens"
    block: str
    tensor: str  # [N, T, D], as the next block reads it
    reader: str  # name of the first node that reads it
    prefix: int  # tokens before the patches
    grid: tuple[int, int]  # (rows, columns) of the first block's patches
    patches: tuple[tuple[int, ...], ...]  # of the first block's, those that each patch token here stands for

    @property
    def count(self) -> int:
        """T, the number of tokens."""
        return self.prefix + len(self.patches)

    def present(self) -> dict[str, int]:
        """Its width by component."""
        return {self.name: self.count}

    @property
    def offered(self) -> tuple[int, ...]:
        """The numbers of tokens to choose from, ascending, the present one last."""
        patches = len(self.patches)
        fewer = {self.prefix + round(fraction * patches) for fraction in _FRACTIONS if patches >= _FEWEST}
        return (*sorted(fewer), self.count)

    def matrix(self, groups: Sequence[Sequence[int]]) -> Float64:
        """Return the matrix that averages each group of patch tokens over its patches, [groups, patch tokens]."""
        matrix = np.zeros((len(groups), len(self.patches)))
        for row, members in enumerate(groups):
            sizes = np.array([len(self.patches[member]) for member in members])
            matrix[row, list(members)] = sizes / sizes.sum()
        return matrix


def tokens_behind_blocks(model: onnx.ModelProto) -> list[Tokens]:
    """List the places where tokens can be merged: behind every block of a plain ViT that vitedge wrote, but the last.

    A rotary embedding turns queries and keys by their tokens' places; with one nothing is merged.
    """
    nodes = {node.name: node for node in model.graph.node}
    if "patch_embed.flatten" not in nodes or any(name.endswith(".rope") for name in nodes):
        return []
    index, (rows, columns) = Index(model), _grid(model)
    pads = index.constant(nodes["prefix_tokens"].input[1]) if "prefix_tokens" in nodes else None
    prefix, places = 0 if pads is None else int(pads[1]), list[Tokens]()
    groups: list[tuple[int, ...]] = [(patch,) for patch in range(rows * columns)]
    for block, node in _ends(nodes):
        if node.op_type == "MatMul":  # tokens are merged here: not before it any more
            matrix = index.constant(node.input[0])
            assert matrix is not None
            groups = [tuple(sum((groups[i] for i in np.flatnonzero(row)), ())) for row in matrix[prefix:, prefix:]]
            places = []
        reader = index.consumers[node.output[0]][0].name
        places.append(Tokens(f"{block}.tokens", block, node.output[0], reader, prefix, (rows, columns), tuple(groups)))
    return places[:-1]


def _grid(model: onnx.ModelProto) -> tuple[int, int]:
    """Return (rows, columns) of the stem's output; only the stem's shapes are inferred, which is fast."""
    stem, constants = onnx.ModelProto(), initializers(model)
    stem.ir_version = model.ir_version
    stem.opset_import.extend(model.opset_import)
    stem.graph.input.extend(model.graph.input)
    names = [node.name for node in model.graph.node]
    for node in model.graph.node[: names.index("patch_embed.proj") + 1]:
        stem.graph.node.append(node)
        stem.graph.initializer.extend(constants[name] for name in node.input if name in constants)
    *_, rows, columns = shapes(pinned(stem))[stem.graph.node[-1].output[0]]
    return int(rows or 0), int(columns or 0)


def _ends(nodes: Mapping[str, onnx.NodeProto]) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yield the blocks that have a branch, and the last node of each."""
    ends: dict[str, onnx.NodeProto] = {}
    for name, node in nodes.items():
        block, _, part = name.rpartition(".")
        if block.startswith("blocks.") and part in ("add1", "add2", "merge"):
            ends[block] = node
    yield from ends.items()


def offering(places: Sequence[Tokens]) -> list[Tokens]:
    """Return the places behind which merging is offered, evenly spread over the depth."""
    blocks = len(places) + 1
    chosen = {round(blocks * (number + 1) / (_PLACES + 1)) - 1 for number in range(_PLACES)}
    return [place for index, place in enumerate(places) if index in chosen]


def place_of(model: onnx.ModelProto, name: str) -> Tokens:
    """Find a place again in a graph in which others were changed."""
    return next(place for place in tokens_behind_blocks(model) if place.name == name)


def with_merged(model: onnx.ModelProto, name: str, groups: Sequence[Sequence[int]] | int) -> onnx.ModelProto:
    """Return the graph with merged tokens.

    Args:
        model: a float graph; it isn't changed.
        name: of the place, say ``blocks.3.tokens``.
        groups: of patch tokens, each becoming one; or how many tokens shall be left, of any groups.
    """
    place = place_of(model, name)
    if isinstance(groups, int):
        groups = [each.tolist() for each in np.array_split(np.arange(len(place.patches)), groups - place.prefix)]
    matrix = merging.with_prefix(place.matrix(groups), place.prefix)
    counts = [sum(len(place.patches[member]) for member in members) for members in groups]
    builder, node_name = GraphBuilder(model), f"{place.block}.merge"
    nodes, constants = list(builder.model.graph.node), initializers(builder.model)
    if f"{node_name}.weight" in constants:
        matrix = matrix @ array(constants[f"{node_name}.weight"])
    weight = set_constant(builder.model, f"{node_name}.weight", np.float32(matrix))
    merged = place.tensor
    for node in nodes:
        if node.name == place.reader and merged == place.tensor and not place.tensor.startswith(node_name):
            merged = builder.node("MatMul", node_name, weight, place.tensor)
        node.input[:] = [merged if tensor == place.tensor else tensor for tensor in node.input]
        if node.name == "pool" and node.op_type == "ReduceMean":
            _count_patches(builder, node, counts)
        if node.name != "pool.sizes":
            builder.nodes.append(node)
    made = builder.written()
    del made.graph.value_info[:]
    return made


def _count_patches(builder: GraphBuilder, pool: onnx.NodeProto, counts: Sequence[int]) -> None:
    """Turn the mean over tokens into the mean over patches: a token counts once for each of its patches."""
    before = pool.input[0]
    earlier = next((node for node in builder.model.graph.node if node.name == "pool.sizes"), None)
    if earlier is not None:
        before = earlier.input[0]
    factors = np.asarray(counts, np.float32)[:, None] / np.mean(counts, dtype=np.float32)
    set_constant(builder.model, "pool.sizes.weight", factors)
    pool.input[0] = builder.node("Mul", "pool.sizes", before, "pool.sizes.weight")
    cut = initializers(builder.model).get("pool.patches.end")
    if cut is not None:
        start = int(array(initializers(builder.model)["pool.patches.start"])[0])
        set_constant(builder.model, "pool.patches.end", np.array([start + len(counts)]))


def gram_of(place: Tokens, batches: Iterable[NDArray[Any]]) -> Float64:
    """Return the Gram matrix of patch tokens: E[LayerNorm(x_i)ᵀ LayerNorm(x_j)] [patch tokens, patch tokens].

    Args:
        place: where they are.
        batches: its tensor on the pictures, [n, T, D] each.
    """
    gram, pictures = np.zeros((len(place.patches), len(place.patches))), 0
    for values in batches:
        tokens = values[:, place.prefix :].astype(np.float64)
        tokens -= tokens.mean(axis=-1, keepdims=True)
        tokens /= np.sqrt(np.square(tokens).mean(axis=-1, keepdims=True) + 1e-6)
        rows = tokens.swapaxes(0, 1).reshape(len(gram), -1)
        gram, pictures = gram + rows @ rows.T, pictures + len(values)
    return np.asarray(gram / pictures)


def groupings(place: Tokens, gram: Float64) -> dict[int, tuple[float, Groups]]:
    """Return, by the number of patch tokens that are left, the squared error of all of them, and the groups of tokens.

    Starting from every token by itself, those two neighbours are joined whose joining adds the least error.

    Args:
        place: where tokens are merged.
        gram: as :func:`gram_of` makes it.
    """
    gram, sizes = gram.copy(), np.array([len(patches) for patches in place.patches], np.float64)
    near, members, error = _neighbours(place), {index: [index] for index in range(len(gram))}, 0.0
    found = {len(members): (0.0, [*members.values()])}
    while near.any():
        squares = np.diag(gram)
        distances = squares[:, None] + squares - 2 * gram
        growth = np.where(near, distances * sizes[:, None] * sizes / (sizes[:, None] + sizes), np.inf)
        first, second = sorted(int(index) for index in np.unravel_index(growth.argmin(), growth.shape))
        error += max(0.0, float(growth[first, second]))
        share = sizes[first] / (sizes[first] + sizes[second])
        gram[first] = share * gram[first] + (1 - share) * gram[second]
        gram[:, first] = share * gram[:, first] + (1 - share) * gram[:, second]
        sizes[first] += sizes[second]
        near[first] |= near[second]
        near[:, first] |= near[:, second]
        near[first, first] = near[second] = near[:, second] = False
        members[first] = sorted([*members[first], *members.pop(second)])
        found[len(members)] = error, [*members.values()]
    return found


def _neighbours(place: Tokens) -> NDArray[np.bool_]:
    """Return which patch tokens have adjacent patches, as a symmetric matrix."""
    columns = place.grid[1]
    owner = {patch: token for token, patches in enumerate(place.patches) for patch in patches}
    near = np.zeros((len(place.patches), len(place.patches)), bool)
    for patch, token in owner.items():
        for other in ([patch + 1] if (patch + 1) % columns else []) + [patch + columns]:
            if other in owner and owner[other] != token:
                near[token, owner[other]] = near[owner[other], token] = True
    return near
