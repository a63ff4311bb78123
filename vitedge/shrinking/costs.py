"""The cost of each component's widths: the error that a narrower component adds to the logits.

By itself, the squared error that a width adds to a layer's output follows from second moments in closed form, for all
widths from one factorisation. What such an error does to the logits differs from layer to layer: two widths of every
component are tried on some of the pictures, and the closed form is scaled to what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.core.progress import Progress, silent
from vitedge.errors import UsageError
from vitedge.shrinking.activations import Activations
from vitedge.shrinking.components import Component, components
from vitedge.shrinking.embedding import Directions, Embedding, embedding_of
from vitedge.shrinking.moments import HeadMoments, Moments, Rows
from vitedge.shrinking.rewrite import Rewriter
from vitedge.shrinking.shrink import Place, batch_of, directions_of, first_node, in_order, shrink
from vitedge.shrinking.solve import ContextProblem, PairProblem, ScoresProblem
from vitedge.shrinking.structures import Attention, Pair, Structure, structures
from vitedge.shrinking.tokens import Groups, Tokens, gram_of, groupings, tokens_behind_blocks, with_merged

Float64 = NDArray[np.float64]
Narrowed = Callable[[int], onnx.ModelProto]  # the graph in which one component alone has a width

_TRIED = 64  # pictures on which the error of a width is measured
_FEWEST = 64  # others, from which on the layers behind a narrower embedding are fitted to these alone


def costs(
    model: onnx.ModelProto,
    pictures: NDArray[np.uint8],
    *,
    names: Collection[str] | None = None,
    directions: Directions | None = None,
    progress: Progress = silent,
) -> dict[str, dict[int, float]]:
    """Return the error of every offered width.

    Each layer is run once on every picture, and for two widths of every component what follows it on 64 of them.

    Args:
        model: a float graph; its one input takes uint8 [N, h, w, 3], its first output is the logits.
        pictures: uint8 [n, h, w, 3], unlabelled; a few hundred.
        names: of the components that are weighed; None: all.
        directions: of the embedding (:func:`vitedge.shrinking.shrink.directions_of`); None: by these pictures.
        progress: called with ("weigh", structures done, all of them).

    Returns:
        By component and offered width: the mean over pictures of the squared difference of the logits, about its mean
        over classes where there's more than one; compensated, and with all others whole. It never falls as widths do.

    Raises:
        UsageError: no pictures.
        ModelError: the graph doesn't run.
        InvalidResultError: an activation isn't finite.
        NotInstalledError: onnxruntime is missing.
    """
    if not len(pictures):
        raise UsageError(
            "measure the error of narrower components", "no pictures were given", "pass some hundred pictures"
        )
    offered = {each.name: each for each in components(model) if names is None or each.name in names}
    scale = _Scale(model, pictures, directions)
    everything: list[Place] = [*structures(model), *tokens_behind_blocks(model)]
    everything += [] if (embedding := embedding_of(model)) is None else [embedding]
    found = in_order(model, [each for each in everything if set(each.present()) & set(offered)])
    weighed: dict[str, dict[int, float]] = {}
    for done, structure in enumerate(found):
        progress("weigh", done, len(found))
        scale.advance(structure)
        for name, (curve, narrowed) in _curves(scale, structure, offered).items():
            weighed[name] = scale.costs(offered[name], curve, narrowed)
    progress("weigh", len(found), len(found))
    return {name: weighed[name] for name in offered}


class _Scale:
    """Measures the effect on the logits of a change at one point of the model."""

    def __init__(
        self, model: onnx.ModelProto, pictures: NDArray[np.uint8], directions: Directions | None = None
    ) -> None:
        self.model, self.rows = model, Rows(model)
        self._pictures, self._directions = pictures, directions
        batch = batch_of(pictures)
        self.tried = pictures[:_TRIED]
        others = pictures[_TRIED:][: len(pictures) // 3]
        self.fitted = others if len(others) >= _FEWEST else pictures
        self._all = Activations(model, pictures, batch)
        self._some = Activations(model, self.tried, batch)
        self._logits = self._run(model)

    def advance(self, structure: Place) -> None:
        """Move on to the point where a structure begins."""
        for activations in (self._all, self._some):
            activations.advance(self.model, first_node(self.model, structure))

    def moments(self, structure: Structure) -> Moments:
        """Return the moments of what the structure's last layer reads and computes."""
        moments, last = Moments(), structure.last
        reads, output = last.linear.input, last.linear.output
        for values in self._all.run(self.model, [reads, output]):
            moments.add(last.view, values[reads], values[output], self.rows, output)
        return moments

    def head_moments(self, attention: Attention) -> HeadMoments:
        """Return the moments of an attention's queries and keys."""
        moments = HeadMoments()
        for values in self._all.run(self.model, [attention.query_tensor, attention.key_tensor]):
            moments.add(values[attention.query_tensor], values[attention.key_tensor], self.rows, attention.query_tensor)
        return moments

    def groupings(self, place: Tokens) -> dict[int, tuple[float, Groups]]:
        """Return, by the number of patch tokens that are left, the error of merging and the groups of tokens."""
        return groupings(
            place, gram_of(place, (values[place.tensor] for values in self._all.run(self.model, [place.tensor])))
        )

    def directions(self, embedding: Embedding) -> Directions:
        """Return the directions of the embedding."""
        return self._directions or directions_of(self.model, embedding, self._pictures)

    def _run(self, model: onnx.ModelProto) -> Float64:
        name = model.graph.output[0].name
        return np.concatenate([values[name] for values in self._some.run(model, [name])]).astype(np.float64)

    def costs(self, component: Component, curve: Float64, narrowed: Narrowed) -> dict[int, float]:
        """Return the cost of every offered width, from the error that it adds to its layer's output [width + 1]."""
        tried = sorted({component.offered[0], component.offered[len(component.offered) // 2 - 1]})
        errors = {width: self._error(narrowed(width)) for width in tried}
        floor = 1e-12 * max(float(curve[0]), 1e-30)
        at = np.log(np.maximum(curve[tried[::-1]], floor))
        factors = np.log([max(errors[width], 1e-30) / max(float(curve[width]), floor) for width in tried[::-1]])
        costs, least = {component.width: 0.0}, 0.0
        for width in component.offered[-2::-1]:
            local = np.exp(np.interp(np.log(max(float(curve[width]), floor)), at, factors))
            least = costs[width] = max(least, errors.get(width, float(local * curve[width])))
        return {width: costs[width] for width in component.offered}

    def _error(self, narrow: onnx.ModelProto) -> float:
        difference = self._run(narrow) - self._logits
        if difference.shape[-1] > 1:
            difference -= difference.mean(axis=-1, keepdims=True)
        return float(np.square(difference).sum(axis=-1).mean())


def _curves(scale: _Scale, structure: Place, offered: Mapping[str, Component]) -> dict[str, tuple[Float64, Narrowed]]:
    """Return, by component, the squared error of each width at the structure's output, and the graph at a width."""
    if isinstance(structure, Tokens):
        return {structure.name: _tokens(scale, structure)}
    if isinstance(structure, Embedding):
        return {structure.name: _embedding(scale, structure)}
    moments = scale.moments(structure)

    def without() -> onnx.ModelProto:
        assert structure.residual is not None
        rewriter = Rewriter(scale.model)
        convolution = structure.last.linear.kind == "conv"
        rewriter.without(structure.residual, moments.mean_output, convolution=convolution)
        return rewriter.finished()

    if isinstance(structure, Pair):
        problem = PairProblem(structure, moments)

        def pair(width: int) -> onnx.ModelProto:
            if width == 0:
                return without()
            solved, rewriter = problem.narrowed(width), Rewriter(scale.model)
            rewriter.pair(structure, solved.units, solved.matrix, solved.bias)
            return rewriter.finished()

        return {structure.name: (problem.errors(), pair)}
    if isinstance(structure, Attention):
        curves = _attention(scale, structure, moments, without)
        return {name: curve for name, curve in curves.items() if name in offered}
    return {
        structure.name: (
            np.array([moments.target_variance, 0.0]),
            lambda width: without() if width == 0 else scale.model,
        )
    }


def _tokens(scale: _Scale, place: Tokens) -> tuple[Float64, Narrowed]:
    found, curve = scale.groupings(place), np.zeros(place.count + 1)
    for patches, (error, _) in found.items():
        curve[place.prefix + patches] = error
    return curve, lambda count: with_merged(scale.model, place.name, found[count - place.prefix][1])


def _embedding(scale: _Scale, embedding: Embedding) -> tuple[Float64, Narrowed]:
    """Return the variance lost, and graphs whose layers are fitted to what is left: without that far more is lost."""
    directions = scale.directions(embedding)

    def narrowed(width: int) -> onnx.ModelProto:
        return shrink(scale.model, {embedding.name: width}, scale.fitted, directions=directions).model

    return directions.errors(), narrowed


def _attention(
    scale: _Scale, attention: Attention, moments: Moments, without: Callable[[], onnx.ModelProto]
) -> dict[str, tuple[Float64, Narrowed]]:
    context, scores = ContextProblem(attention, moments), ScoresProblem(attention, scale.head_moments(attention))
    pairs, heads = np.arange(attention.query_key // 2), np.arange(attention.heads)

    def heads_alone(count: int) -> onnx.ModelProto:
        if count == 0:
            return without()
        solved, rewriter = context.narrowed(count, attention.value_width), Rewriter(scale.model)
        rewriter.attention(attention, solved.weights, pairs, solved.heads)
        return rewriter.finished()

    def queries_alone(width: int) -> onnx.ModelProto:
        solved, rewriter = scores.narrowed(width), Rewriter(scale.model)
        rewriter.attention(attention, solved.weights, solved.pairs, heads)
        return rewriter.finished()

    def values_alone(width: int) -> onnx.ModelProto:
        solved, rewriter = context.narrowed(attention.heads, width), Rewriter(scale.model)
        rewriter.attention(attention, solved.weights, pairs, solved.heads)
        return rewriter.finished()

    return {
        f"{attention.name}.heads": (context.head_errors(), heads_alone),
        f"{attention.name}.query_key": (scores.errors(), queries_alone),
        f"{attention.name}.value": (context.value_errors(), values_alone),
    }
