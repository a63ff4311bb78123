"""The weights of narrower structures, from the moments of what they read and of what they're to give."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitedge.shrinking.algebra import (
    Removal,
    block_diagonal,
    damped,
    low_rank_scores,
    mixing,
    removal_order,
    rotary_pairs,
    targeted,
    value_bases,
)
from vitedge.shrinking.moments import HeadMoments, Moments
from vitedge.shrinking.rewrite import AttentionWeights, read_attention
from vitedge.shrinking.structures import Attention, Pair

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class NarrowedPair:
    """New constants of a pair's second layer."""

    units: Indices  # that are kept, ascending
    matrix: Float64  # [their rows, C_out]
    bias: Float64  # [C_out]
    error: float  # squared error over the target's variance


@dataclass(frozen=True)
class NarrowedScores:
    """An attention with fewer channels of queries and keys."""

    weights: AttentionWeights
    pairs: Indices  # of a rotary embedding that are kept, ascending; else all
    error: float  # squared error of the scores over their second moment


@dataclass(frozen=True)
class NarrowedContext:
    """An attention with fewer heads, or fewer channels of values."""

    weights: AttentionWeights
    heads: Indices  # that are kept, ascending
    error: float  # squared error of the output over the target's variance


def fitted(matrix: Float64, moments: Moments) -> tuple[Float64, Float64]:
    """Return the damped covariance of a layer's inputs, and its weights [K, C_out] fitted to the target."""
    covariance = moments.covariance
    ridge = damped(covariance)
    return ridge, targeted(ridge, covariance, matrix, moments.cross)


class PairProblem:
    """The least-squares problem of a pair: which units to keep, and the second layer's new weights."""

    def __init__(self, pair: Pair, moments: Moments, keep: int = 0) -> None:
        """Order the units.

        Args:
            pair: as it is in the graph.
            moments: of what its second layer reads, and of its target.
            keep: the least width that will be asked for.
        """
        self._pair, self._moments = pair, moments
        ridge, full = fitted(pair.second.matrix, moments)
        order = removal_order(ridge, full, pair.rows, keep=keep)
        self._removal = Removal.of(ridge, full, order, pair.rows)

    def errors(self) -> Float64:
        """Squared error of the output that keeping 0, 1, .. units adds."""
        return self._removal.errors()

    def narrowed(self, width: int) -> NarrowedPair:
        """Keep so many units, at least 1."""
        rows_each, moments = self._pair.rows, self._moments
        units, new = self._removal.kept(width), self._removal.matrix(width)
        rows = (units[:, None] * rows_each + np.arange(rows_each)).ravel()
        bias = moments.target_mean - moments.mean[rows] @ new
        return NarrowedPair(units, new, bias, relative_error(moments, rows, new))


def relative_error(moments: Moments, rows: Indices, matrix: Float64) -> float:
    """E |y - x_S W'|² over E |y|², both about their means."""
    if moments.target_variance <= 0:
        return 0.0
    explained = 2 * np.sum(matrix * moments.cross[rows])
    spread = np.sum(matrix * (moments.covariance[np.ix_(rows, rows)] @ matrix))
    return max(0.0, 1 - float(explained - spread) / moments.target_variance)


class ScoresProblem:
    """Fewer channels of queries and keys, which keep their products best."""

    def __init__(self, attention: Attention, moments: HeadMoments) -> None:
        """Factor the scores."""
        self._attention, self._weights = attention, read_attention(attention)
        self._whole = float((moments.queries * moments.keys).sum()) or 1.0
        if attention.rotary is None:
            self._query_maps, self._key_maps, values = low_rank_scores(moments.queries, moments.keys)
            squares = np.square(values).sum(axis=0)
            self._errors = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
            return
        scores = rotary_pairs(moments.queries, moments.keys)
        ridge, ones = damped(scores), np.ones((*scores.shape[:2], 1))
        order = removal_order(ridge, ones)
        self._removals = [Removal.of(ridge[head], ones[head], order) for head in range(len(scores))]
        self._errors = np.repeat(np.sum([removal.errors() for removal in self._removals], axis=0), 2)[:-1]

    def errors(self) -> Float64:
        """Squared error of the scores, summed over heads, with 0, 1, .. channels; of pairs, even numbers count."""
        return self._errors

    def narrowed(self, width: int) -> NarrowedScores:
        """Keep so many channels of each head."""
        weights, error = self._weights, float(self._errors[width]) / self._whole
        if self._attention.rotary is None:
            query = weights.query.mapped(self._query_maps[..., :width])
            key = weights.key.mapped(self._key_maps[..., :width])
            return NarrowedScores(replace(weights, query=query, key=key), np.arange(width // 2), error)
        pairs = self._removals[0].kept(width // 2)
        factors = np.stack([removal.matrix(width // 2)[:, 0] for removal in self._removals])
        channels = np.concatenate([pairs, pairs + self._attention.query_key // 2])
        scaled = np.concatenate(
            [factors, factors], axis=1
        )  # both partners of a pair alike, as rotations commute with it
        query = weights.query.channels(channels)
        bias = None if query.bias is None else query.bias * scaled
        query = replace(query, weight=query.weight * scaled, bias=bias)
        return NarrowedScores(replace(weights, query=query, key=weights.key.channels(channels)), pairs, error)


class ContextProblem:
    """Fewer heads, then fewer channels of the values of those that stay; the projection makes up for both."""

    def __init__(self, attention: Attention, moments: Moments) -> None:
        """Order the heads."""
        self._moments, self._size = moments, attention.value_width
        self._weights, self._heads = read_attention(attention), attention.heads
        self._ridge, full = fitted(self._weights.projection, moments)
        order = removal_order(self._ridge, full, self._size)
        self._removal = Removal.of(self._ridge, full, order, self._size)

    def head_errors(self) -> Float64:
        """Squared error of the output that keeping 0, 1, .. heads adds."""
        return self._removal.errors()

    def value_errors(self) -> Float64:
        """Squared error of the output that 0, 1, .. channels of every head's values add, with all heads."""
        _, removal = self._values(np.arange(len(self._ridge)), self._removal.matrix(self._heads), self._heads)
        return removal.errors()[:: self._heads]

    def _values(self, rows: Indices, matrix: Float64, heads: int) -> tuple[Float64, Removal]:
        """Bases of each head's values, and the context in these, the first direction of every head first."""
        ridge = self._ridge[np.ix_(rows, rows)]
        bases = value_bases(ridge, matrix, heads)
        turned = block_diagonal(bases)
        by_rank = np.arange(heads * self._size).reshape(heads, self._size).T.ravel()
        return bases, Removal.of(turned.T @ ridge @ turned, turned.T @ matrix, by_rank)

    def narrowed(self, heads: int, width: int) -> NarrowedContext:
        """Keep so many heads, and so many channels of their values; at least 1 each."""
        kept, matrix, moments = self._removal.kept(heads), self._removal.matrix(heads), self._moments
        rows = (kept[:, None] * self._size + np.arange(self._size)).ravel()
        weights, effective = self._weights.heads(kept), matrix
        if width < self._size:
            bases, removal = self._values(rows, matrix, heads)
            mixed = mixing(width)  # the same span; what is rounded has channels of like spread
            maps = bases[..., :width] @ mixed
            matrix = block_diagonal(np.stack([mixed] * heads)).T @ removal.matrix(heads * width)
            weights = replace(weights, value=weights.value.mapped(maps))
            effective = block_diagonal(maps) @ matrix  # what the whole context would be multiplied by
        bias = moments.target_mean - moments.mean[rows] @ effective
        weights = replace(weights, projection=matrix, bias=bias)
        return NarrowedContext(weights, kept, relative_error(moments, rows, effective))
