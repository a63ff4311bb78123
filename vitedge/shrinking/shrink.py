"""Make a model narrower so that it computes nearly the same as before, with unlabelled pictures only.

Layer after layer, each on what the narrowed layers before it really compute, its target what the original computes
there: what the earlier ones lost is made up for as well. CORP (2602.05243) and ZipLM (2302.04089) take both from the
original. Every layer of the original is run twice on every picture, every layer of the narrower graph two or three
times.

A narrower embedding comes first; then the layers that read it are fitted as well, each on what it reads now to what it
computed in the original. On request, all weights of an attention or MLP are adjusted once it is narrower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.core.progress import Progress, silent
from vitedge.errors import UsageError
from vitedge.graph.merging import with_prefix
from vitedge.quantization.views import Layer, quantizable
from vitedge.shrinking.activations import Activations, Tensors
from vitedge.shrinking.adjust import (
    ENOUGH_PICTURES,
    Branch,
    Parameters,
    adjusted,
    attention_weights,
    mlp,
    reproduces,
)
from vitedge.shrinking.adjust import attention as attention_branch
from vitedge.shrinking.components import changed, check_widths, fewer_tokens, narrower_embedding
from vitedge.shrinking.embedding import Directions, Embedding, Norm
from vitedge.shrinking.moments import HeadMoments, Moments, Rows, with_rows
from vitedge.shrinking.rewrite import AttentionWeights, Rewriter
from vitedge.shrinking.solve import ContextProblem, PairProblem, ScoresProblem, fitted
from vitedge.shrinking.structures import Attention, Pair, Structure, structure_of
from vitedge.shrinking.tokens import Tokens, gram_of, groupings, place_of, with_merged

_PIXELS_AT_ONCE = 8 * 224 * 224  # pixels of a batch

Indices = NDArray[np.intp]
Place = Structure | Tokens | Embedding
Step = Structure | Tokens | Norm
S = TypeVar("S", bound=Place | Norm)

_ROWS_PER_INPUT = 16  # a layer that reads fewer rows isn't fitted: there would be too few


@dataclass(frozen=True)
class Kept:
    """The outcome for one component."""

    width: int
    units: tuple[int, ...] | None  # those that are kept, ascending; None where they were mixed into fewer channels
    error: float  # squared error of the layer's output (of query and key: of the scores) over its variance


@dataclass(frozen=True)
class Shrunk:
    """A narrower model, and what was kept."""

    model: onnx.ModelProto
    kept: Mapping[str, Kept]  # by component, those that became narrower


def shrink(
    model: onnx.ModelProto,
    widths: Mapping[str, int],
    pictures: NDArray[np.uint8],
    *,
    sequential: bool = True,
    target: Literal["layer", "stream"] = "stream",
    adjust: bool = False,
    directions: Directions | None = None,
    progress: Progress = silent,
) -> Shrunk:
    """Make components narrower, and refit the remaining weights to compensate.

    Args:
        model: a float graph; its one input takes uint8 [N, h, w, 3].
        widths: by component (:func:`vitedge.shrinking.components.components`); others keep theirs, and where nothing
            is named nothing changes.
        pictures: uint8 [n, h, w, 3], unlabelled; a few hundred.
        sequential: False: every layer as if it alone became narrower, for comparison.
        adjust: whether all weights of narrowed branches are adjusted as well (:mod:`vitedge.shrinking.adjust`), where
            there are enough pictures; it takes two to three times as long then.
        directions: of the model's embedding (:func:`directions_of`), where they are known; None: by these pictures.
        progress: called with ("shrink", structures done, all of them).

    Raises:
        UsageError: no such component, a width that it can't have, or no pictures.
        ModelError: the graph doesn't run.
        InvalidResultError: an activation isn't finite.
        NotInstalledError: onnxruntime is missing.
    """
    check_widths(model, widths)
    if not len(pictures):
        raise UsageError("shrink a model", "no pictures were given", "pass some hundred pictures")
    asked: list[Step] = [*changed(model, widths), *fewer_tokens(model, widths)]
    adjusts = adjust and sequential and len(pictures) >= ENOUGH_PICTURES
    walk = _Walk(model, pictures, sequential=sequential, target=target, adjusts=adjusts)
    if (embedding := narrower_embedding(model, widths)) is not None:
        if not sequential:
            reason = "a narrower embedding changes what every other layer reads"
            raise UsageError("shrink each layer apart", reason, "shrink one layer after the other")
        found = directions or directions_of(model, embedding, pictures)
        walk.embed(embedding, widths[embedding.name], found)
        asked = [*embedding.norms, *asked]  # what reads a norm comes behind it
    asked = in_order(model, asked)
    for done, structure in enumerate(asked):
        progress("shrink", done, len(asked))
        walk.narrow(structure, widths)
    progress("shrink", len(asked), len(asked))
    rewriter = Rewriter(walk.model)
    rewriter.absorb_means()
    return Shrunk(rewriter.finished(), walk.kept)


def directions_of(model: onnx.ModelProto, found: Embedding, pictures: NDArray[np.uint8]) -> Directions:
    """Return the directions of a model's embedding, by pictures, uint8 [n, h, w, 3]."""
    activations = Activations(model, pictures, batch_of(pictures))
    return Directions(found, activations.run(model, found.tensors), Rows(model))


def batch_of(pictures: NDArray[np.uint8]) -> int:
    """Return how many pictures run together in one batch."""
    height, width = pictures.shape[1:3]
    return int(max(1, min(64, _PIXELS_AT_ONCE // (height * width))))


def first_node(model: onnx.ModelProto, structure: Place | Norm) -> str:
    """The first node that changes when a structure becomes narrower."""
    if isinstance(structure, Tokens):
        return structure.reader
    if isinstance(structure, Norm):
        return structure.name
    if isinstance(structure, Embedding):
        return str(model.graph.node[0].name)
    if isinstance(structure, Pair):
        names = {structure.first.name}
    elif isinstance(structure, Attention):
        names = {part.layer.name for part in (structure.query, structure.key, structure.value)}
    else:
        names = {structure.residual.add}
    return next(str(node.name) for node in model.graph.node if node.name in names)


def in_order(model: onnx.ModelProto, found: Sequence[S]) -> list[S]:
    """Sort structures by the position of their first node in the graph."""
    positions = {node.name: position for position, node in enumerate(model.graph.node)}
    return sorted(found, key=lambda each: positions[first_node(model, each)])


class _Walk:
    """A walk through the original graph and the narrower one, side by side."""

    def __init__(
        self, model: onnx.ModelProto, pictures: NDArray[np.uint8], *, sequential: bool, target: str, adjusts: bool
    ) -> None:
        self.original, self.model, self.target, self.adjusts = model, model, target, adjusts
        self.kept: dict[str, Kept] = {}
        batch = batch_of(pictures)
        self._before = Activations(model, pictures, batch)
        self._after = Activations(model, pictures, batch) if sequential else None
        self._rows = Rows(model)
        self._merging: NDArray[np.float32] | None = None  # of all tokens, where some are merged by now
        self._embedding: Embedding | None = None  # of the original, where it became narrower
        self._basis: NDArray[np.float32] | None = None

    def embed(self, found: Embedding, width: int, directions: Directions) -> None:
        """Make the embedding narrower, before anything else."""
        basis, rewriter = directions.basis(width), Rewriter(self.model)
        rewriter.embedding(found, basis)
        self.model, self._embedding, self._basis = rewriter.finished(), found, basis.astype(np.float32)
        errors = directions.errors()
        self.kept[found.name] = Kept(width, None, float(errors[width] / errors[0]))

    def narrow(self, original: Step, widths: Mapping[str, int]) -> None:
        """Make one structure narrower; those before it are done."""
        begin = first_node(self.original, original)
        self._before.advance(self.original, begin)
        if self._after is not None:
            self._after.advance(self.model, begin)
        if isinstance(original, Tokens):
            self._merge(place_of(self.model, original.name), widths[original.name])
            return
        if isinstance(original, Norm):
            for layer in original.readers:
                self._fit(layer)
            return
        structure = structure_of(self.model, original)
        if structure.residual is not None and structure.goes(widths):
            self._without(structure)
        elif isinstance(structure, Pair):
            self._pair(structure, widths[structure.name])
        elif isinstance(structure, Attention):
            self._attention(structure, widths)

    def _fit(self, original: Layer) -> None:
        """Fit a layer that reads the embedding to what it computed in the original."""
        assert self._after is not None
        moments, output = Moments(), original.linear.output
        layer = next(each for each in quantizable(self.model)[0] if each.name == original.name)
        reads = layer.linear.input
        both = zip(self._after.run(self.model, [reads]), self._before.run(self.original, [output]), strict=True)
        for values, whole in both:
            moments.add(layer.view, values[reads], self._merged(whole[output]), self._rows, output)
        if moments.read < _ROWS_PER_INPUT * layer.inputs:
            return
        _, matrix = fitted(layer.matrix, moments)
        rewriter = Rewriter(self.model)
        rewriter.layer(layer.name, matrix, moments.target_mean - moments.mean @ matrix)
        self.model = rewriter.finished()

    def _merge(self, place: Tokens, count: int) -> None:
        """Merge tokens; from there on the targets are what the original computes, merged likewise."""
        activations = self._before if self._after is None else self._after
        gram = gram_of(place, (values[place.tensor] for values in activations.run(self.model, [place.tensor])))
        error, groups = groupings(place, gram)[count - place.prefix]
        self.model = with_merged(self.model, place.name, groups)
        matrix = np.float32(with_prefix(place.matrix(groups), place.prefix))
        self._merging = matrix if self._merging is None else matrix @ self._merging
        self.kept[place.name] = Kept(count, None, error / max(float(np.trace(gram)), 1e-30))

    def _without(self, structure: Structure) -> None:
        assert structure.residual is not None
        moments = self._moments(structure)
        rewriter = Rewriter(self.model)
        convolution = structure.last.linear.kind == "conv"
        rewriter.without(structure.residual, moments.mean_output, convolution=convolution)
        self.model = rewriter.finished()
        for name in structure.present():
            self.kept[name] = Kept(0, (), 1.0)

    def _pair(self, pair: Pair, width: int) -> None:
        moments = self._moments(pair)
        solved = PairProblem(pair, moments, keep=width).narrowed(width)
        rewriter = Rewriter(self.model)
        rewriter.pair(pair, solved.units, solved.matrix, solved.bias)
        self.model = rewriter.finished()
        self.kept[pair.name] = Kept(width, tuple(solved.units.tolist()), solved.error)
        if self.adjusts:
            self._adjust_pair(structure_of(self.model, pair))

    def _adjust_pair(self, pair: Pair) -> None:
        weights = self._adjusted(pair, mlp(pair), pair.first.linear.input)
        if weights is None:
            return
        rewriter = Rewriter(self.model)
        rewriter.layer(pair.first.name, weights["first"].astype(np.float64), weights.get("first_bias"))
        rewriter.layer(pair.second.name, weights["second"].astype(np.float64), weights.get("second_bias"))
        self.model = rewriter.finished()

    def _attention(self, attention: Attention, widths: Mapping[str, int]) -> None:
        width, name = attention.widths(widths), attention.name
        if width.query_key < attention.query_key:
            moments, queries = HeadMoments(), attention.query_tensor
            for values, _ in self._observed(attention, [queries, attention.key_tensor]):
                moments.add(values[queries], values[attention.key_tensor], self._rows, queries)
            scores = ScoresProblem(attention, moments).narrowed(width.query_key)
            self._write(attention, scores.weights, scores.pairs, np.arange(attention.heads))
            pairs = None if attention.rotary is None else tuple(scores.pairs.tolist())
            self.kept[f"{name}.query_key"] = Kept(width.query_key, pairs, scores.error)
            attention = structure_of(self.model, attention)
        if (width.heads, width.value) == (attention.heads, attention.value_width) and self._after is None:
            return
        context = ContextProblem(attention, self._moments(attention)).narrowed(width.heads, width.value)
        self._write(attention, context.weights, np.arange(attention.query_key // 2), context.heads)
        if width.heads < attention.heads:
            self.kept[f"{name}.heads"] = Kept(width.heads, tuple(context.heads.tolist()), context.error)
        if width.value < attention.value_width:
            self.kept[f"{name}.value"] = Kept(width.value, None, context.error)
        if self.adjusts:
            self._adjust_attention(structure_of(self.model, attention))

    def _adjust_attention(self, attention: Attention) -> None:
        weights = self._adjusted(attention, attention_branch(attention), attention.query.layer.linear.input)
        if weights is not None:
            pairs = np.arange(attention.query_key // 2)
            heads = np.arange(attention.heads)
            self._write(attention, attention_weights(weights), pairs, heads)

    def _adjusted(self, structure: Structure, branch: Branch | None, reads: str) -> Parameters | None:
        """Return a branch's adjusted weights; None where it isn't adjusted: few of its rows are read, say."""
        output = structure.last.linear.output
        if branch is None or self._rows.read(output) is not None:
            return None
        assert self._after is not None
        first = next(iter(self._after.run(self.model, [reads, output])))
        if first[output].ndim != 3 or not reproduces(branch, first[reads], first[output]):
            return None
        observed = [(values[reads], target) for values, target in self._observed(structure, [reads])]
        inputs, targets = (np.concatenate(each).astype(np.float32, copy=False) for each in zip(*observed, strict=True))
        tokens = targets.shape[1]
        rows = np.full(tokens, 1 / tokens, np.float32)
        if (heavy := self._rows.heavy(output, targets)) is not None:
            rows[heavy.start : heavy.stop] += 1 / (heavy.stop - heavy.start)
        return adjusted(branch, inputs, targets, rows)

    def _write(self, attention: Attention, weights: AttentionWeights, pairs: Indices, heads: Indices) -> None:
        rewriter = Rewriter(self.model)
        rewriter.attention(attention, weights, pairs, heads)
        self.model = rewriter.finished()

    def _moments(self, structure: Structure) -> Moments:
        """Return the moments of what the structure's last layer reads, and of its target."""
        moments, last = Moments(), structure.last
        for values, target in self._observed(structure, [last.linear.input]):
            moments.add(last.view, values[last.linear.input], target, self._rows, last.linear.output)
        return moments

    def _observed(self, structure: Structure, wanted: list[str]) -> Iterator[tuple[Tensors, NDArray[Any]]]:
        """Tensors of the narrower graph, and the target of the structure's output, batch by batch."""
        output, residual = structure.last.linear.output, structure.residual
        if self._after is None:
            for values in self._before.run(self.original, [*wanted, output]):
                yield values, values[output]
        elif residual is None or self.target == "layer":
            both = zip(self._after.run(self.model, wanted), self._before.run(self.original, [output]), strict=True)
            yield from ((values, self._target(structure, whole[output])) for values, whole in both)
        else:
            after = self._after.run(self.model, [*wanted, residual.skip, output])
            rows = self._rows.read(output)
            for values, whole in zip(after, self._before.run(self.original, [residual.output]), strict=True):
                target = self._target(structure, whole[residual.output]) - values[residual.skip]
                yield values, target if rows is None else with_rows(values[output], target, rows)

    def _target(self, structure: Structure, whole: NDArray[Any]) -> NDArray[Any]:
        """Return the original's output of a structure in the channels and tokens of the graph that is being made."""
        if self._embedding is not None and self._embedding.writes(structure.last.name):
            axis = 1 if structure.last.linear.kind == "conv" else -1
            whole = np.moveaxis(np.moveaxis(whole, axis, -1) @ self._basis, -1, axis)
        return self._merged(whole)

    def _merged(self, whole: NDArray[Any]) -> NDArray[Any]:
        """Merge the tokens of the original's tensor [N, T, D] as the graph that is being made merges them."""
        if self._merging is None or whole.ndim < 3:  # behind pooling there are none
            return whole
        return np.asarray(np.einsum("ts,nsd->ntd", self._merging, whole, optimize=True))
