"""Numerics of narrower layers, in float64: which inputs a layer can lose at least cost, and weights that compensate.

A layer y = x W + b is to give what it gave with fewer of its inputs. With the inputs' covariance C and the ridge λ,
D = C + λ I, the weights W' of the kept inputs S minimise

    E |y - x_S W' - b'|² + λ |W' - W|²

(ridge least squares about the weights that are there, so that nothing changes where nothing is removed); the bias is
what makes the means agree. Leaving out the inputs R costs tr(W_Rᵀ ((D⁻¹)_RR)⁻¹ W_R), and the rest take up
D_SS⁻¹ D_SR W_R: Optimal Brain Surgeon (Hassibi & Stork 1992) for groups of weights, as in ZipLM (2302.04089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Indices = NDArray[np.intp]

#: λ as a fraction of the mean variance of the inputs.
RIDGE = 1e-2
_AT_ONCE = 32  # inputs that are removed before the whole inverse is down-dated
_RANK = 1e-10  # eigenvalues below this fraction of the largest count as zero


def damped(covariance: Float64, ridge: float = RIDGE) -> Float64:
    """Return C + λ I, [.., K, K]; positive definite even where inputs are constant or differ by rounding alone."""
    size = covariance.shape[-1]
    variance = np.maximum(np.trace(covariance, axis1=-2, axis2=-1) / size, 1e-30)
    added = ridge * variance[..., None, None] * np.eye(size)
    try:
        np.linalg.cholesky(covariance + added / 2)
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(covariance)[..., :1, None]
        added = added + np.maximum(-least, 0) * np.eye(size)
    return np.asarray(covariance + added)


def targeted(damped_covariance: Float64, covariance: Float64, matrix: Float64, cross: Float64) -> Float64:
    """Return the weights of all inputs that fit another target than the layer's present output.

    Args:
        damped_covariance: D [K, K].
        covariance: C [K, K].
        matrix: W [K, C_out], the weights that are there.
        cross: E[(x - E x)(y - E y)ᵀ] of the inputs and the target [K, C_out].

    Returns:
        W + D⁻¹ (cross - C W), the minimum of the ridge problem over all inputs.
    """
    return np.asarray(matrix + np.linalg.solve(damped_covariance, cross - covariance @ matrix))


def removal_order(damped_covariance: Float64, matrix: Float64, rows: int = 1, keep: int = 0) -> Indices:
    """Return the units, from the one to remove last to the one that is cheapest to remove.

    Greedy: the unit u with the least cost tr(W_uᵀ ((D⁻¹)_uu)⁻¹ W_u) goes, the weights of the others are updated, and
    the inverse is down-dated by D⁻¹_·u ((D⁻¹)_uu)⁻¹ D⁻¹_u·, exactly; of the whole inverse that is put off for some
    units and then done at once, as in Optimal Brain Compression (2208.11580).

    Args:
        damped_covariance: D [B, K, K] of B layers that lose the same units, or [K, K] of one.
        matrix: W [B, K, C_out], or [K, C_out].
        rows: inputs that are one unit; a unit's inputs follow each other.
        keep: units whose order doesn't matter, as they stay.

    Returns:
        Indices of units [K / rows], the first one to go last.
    """
    inverse: Float64 = np.asarray(np.linalg.inv(damped_covariance.reshape(-1, *damped_covariance.shape[-2:])))
    weights = matrix.reshape(len(inverse), -1, matrix.shape[-1]).astype(np.float64)
    units = np.arange(weights.shape[1] // rows)
    gone: list[int] = []
    while len(units) > keep:
        steps = min(max(1, _AT_ONCE // rows), len(units) - keep)
        chosen = _cheapest(inverse, weights, rows, steps)
        gone += units[chosen.units].tolist()
        stays = np.delete(np.arange(len(units)), chosen.units)
        left = (stays[:, None] * rows + np.arange(rows)).ravel()
        down = chosen.factor[:, left]
        inverse = inverse[:, left[:, None], left] - down @ down.swapaxes(1, 2)
        weights, units = chosen.weights[:, left], units[stays]
    return np.array([*units.tolist(), *gone[::-1]], np.intp)


class _Chosen(NamedTuple):
    units: Indices
    factor: Float64  # V [B, K, rows · units]; the inverse without them is D⁻¹ - V Vᵀ
    weights: Float64  # [B, K, C_out], updated


def _cheapest(inverse: Float64, weights: Float64, rows: int, steps: int) -> _Chosen:
    """Pick units to remove one by one: each is the cheapest after the others compensated for the units before it.

    A cost is that of a unit's Gram matrix over the outputs, tr(((D⁻¹)_uu)⁻¹ W_u W_uᵀ). So the weights are put
    together once, from what all steps take off, W - V C; within a step one product with them is enough.
    """
    batch, size, outputs = weights.shape
    count = size // rows
    blocks = np.einsum("buxuy->buxy", inverse.reshape(batch, count, rows, count, rows)).copy()
    own = weights.reshape(batch, count, rows, outputs)
    grams = own @ own.swapaxes(2, 3)
    factor, lost = np.zeros((batch, size, rows * steps)), np.zeros((batch, rows * steps, outputs))
    units = np.zeros(steps, np.intp)
    for step in range(steps):
        costs = np.trace(np.linalg.solve(blocks, grams), axis1=2, axis2=3).sum(axis=0)
        costs[units[:step]] = np.inf
        unit = int(costs.argmin())
        at, now = slice(unit * rows, (unit + 1) * rows), slice(step * rows, (step + 1) * rows)
        done, gone = factor[:, :, : now.start], lost[:, : now.start]
        columns = inverse[:, :, at] - done @ done[:, at].swapaxes(1, 2)
        root = np.linalg.cholesky(columns[:, at])
        new = np.linalg.solve(root, columns.swapaxes(1, 2)).swapaxes(1, 2)
        taken = np.linalg.solve(root, weights[:, at] - done[:, at] @ gone)  # off the weights, times ``new``
        across = taken.swapaxes(1, 2)
        products = (weights @ across - done @ (gone @ across)).reshape(batch, count, rows, rows)
        own_new = new.reshape(batch, count, rows, rows)
        mixed = products @ own_new.swapaxes(2, 3)
        grams += own_new @ (taken @ across)[:, None] @ own_new.swapaxes(2, 3) - mixed - mixed.swapaxes(2, 3)
        blocks -= own_new @ own_new.swapaxes(2, 3)
        blocks[:, [*units[:step], unit]] = np.eye(rows)  # what is gone stays solvable
        factor[:, :, now], lost[:, now], units[step] = new, taken, unit
    return _Chosen(units, factor, weights - factor @ lost)


@dataclass(frozen=True)
class Removal:
    """A layer's inputs in the order of their removal, with one factorisation for every number of them.

    With D = L Lᵀ, the inputs that stay longest first, and P = Lᵀ W: without the inputs behind the first s the squared
    error grows by the squares of P's rows behind the first s, and the weights solve L_ssᵀ W' = P_s.
    """

    kept_first: Indices  # units [n]; the one to remove last comes first
    rows: int  # inputs of a unit
    factor: Float64  # L [K, K]
    product: Float64  # P [K, C_out]

    @classmethod
    def of(cls, damped_covariance: Float64, matrix: Float64, kept_first: Indices, rows: int = 1) -> Removal:
        """Factor D [K, K] with the weights W [K, C_out] and this order of units."""
        order = (kept_first[:, None] * rows + np.arange(rows)).ravel()
        factor = np.linalg.cholesky(damped_covariance[np.ix_(order, order)])
        return cls(kept_first, rows, factor, factor.T @ matrix[order])

    def errors(self) -> Float64:
        """Return the squared error that keeping 0, 1, .. n units adds [n + 1]; the last is 0."""
        squares = np.square(self.product).sum(axis=1).reshape(-1, self.rows).sum(axis=1)
        return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])

    def kept(self, width: int) -> Indices:
        """Return the units that are kept, ascending."""
        return np.sort(self.kept_first[:width])

    def matrix(self, width: int) -> Float64:
        """Return the weights of the units that are kept, in ascending order of units [width · rows, C_out]."""
        size = width * self.rows
        solved = np.linalg.solve(self.factor[:size, :size].T, self.product[:size])
        by_unit = solved.reshape(width, self.rows, -1)[np.argsort(self.kept_first[:width])]
        return np.asarray(by_unit.reshape(size, -1))


# --- attention -------------------------------------------------------------------------------------------------------


def low_rank_scores(queries: Float64, keys: Float64) -> tuple[Float64, Float64, Float64]:
    """Return linear maps to fewer channels of queries and keys that preserve q · k best.

    The scores of queries and keys with E[q qᵀ] = Q and, about their mean, E[k kᵀ] = K (a term that is the same for all
    keys is none to Softmax) have the squared norm of Q^½ K^½; the best of rank r are its first r singular vectors
    (Eckart & Young 1936), as CORP (2602.05243) does with the layers' input.

    Args:
        queries: Q [heads, d, d].
        keys: K [heads, d, d].

    Returns:
        Maps of queries and of keys, [heads, d, d] each, whose first r columns are the maps to r channels; and the
        singular values [heads, d], the sum of whose squares behind the first r is the squared error of the scores.
    """
    (query_root, query_inverse), (key_root, key_inverse) = _roots(queries), _roots(keys)
    left, values, right = np.linalg.svd(query_root @ key_root)
    share = np.sqrt(values)[:, None, :]
    return query_inverse @ left * share, key_inverse @ right.swapaxes(1, 2) * share, np.asarray(values)


def _roots(moments: Float64) -> tuple[Float64, Float64]:
    """Return the symmetric square root of [.., d, d] and its pseudo-inverse."""
    values, vectors = np.linalg.eigh(moments)
    least = _RANK * np.maximum(values[..., -1:], 1e-30)
    roots = np.sqrt(np.maximum(values, 0))
    inverses = np.where(values > least, 1 / np.sqrt(np.maximum(values, least)), 0)
    back = vectors.swapaxes(-1, -2)
    return vectors * roots[..., None, :] @ back, vectors * inverses[..., None, :] @ back


def rotary_pairs(queries: Float64, keys: Float64) -> Float64:
    """Return how the terms of an attention score, one for each pair of a rotary embedding, vary together.

    A score is the sum of one product a pair, q_p · k_p; with queries and keys drawn apart, E[s_p s_q] is the sum of
    E[q_p q_qᵀ] ∘ E[k_p k_qᵀ] over the four channels.

    Args:
        queries: E[q qᵀ] [heads, d, d] of turned queries, partners half a head apart.
        keys: E[k kᵀ] about the mean, [heads, d, d].

    Returns:
        [heads, d / 2, d / 2]; keeping a score is a linear problem in as many inputs, with the weights 1.
    """
    heads, channels, _ = queries.shape
    products = (queries * keys).reshape(heads, 2, channels // 2, 2, channels // 2)
    return np.asarray(products.sum(axis=(1, 3)))


def value_bases(damped_covariance: Float64, matrix: Float64, heads: int) -> Float64:
    """Return an orthonormal basis of each head's context, most important directions first.

    What a head adds to the output, c_h W_h, varies most along the singular vectors of C_h^½ W_h; the first r columns
    span the r channels that keep it best by themselves.

    Args:
        damped_covariance: D of the context [heads · d, heads · d].
        matrix: the projection W [heads · d, C_out].
        heads: their number.

    Returns:
        [heads, d, d], whose columns are the bases.
    """
    size = len(matrix) // heads
    own = np.stack([damped_covariance[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(heads)])
    root, inverse = _roots(own)
    weighted = root @ matrix.reshape(heads, size, -1)
    vectors = np.linalg.eigh(weighted @ weighted.swapaxes(1, 2))[1][:, :, ::-1]
    return np.asarray(np.linalg.qr(inverse @ vectors)[0])


def mixing(size: int) -> Float64:
    """Return an orthonormal matrix [size, size] without dominant elements, a discrete cosine transform (DCT-II).

    Its product with channels that differ much in spread has channels that differ little: one scale for all of them
    wastes less of an integer grid.
    """
    positions = np.arange(size)
    matrix = np.cos(np.pi * (positions[:, None] + 0.5) * positions / size) * np.sqrt(2 / size)
    matrix[:, 0] /= np.sqrt(2)
    return np.asarray(matrix.T)


def block_diagonal(blocks: Float64) -> Float64:
    """Arrange [heads, a, b] as one block-diagonal matrix [heads · a, heads · b]."""
    heads, a, b = blocks.shape
    joined = np.zeros((heads, a, heads, b))
    joined[np.arange(heads), :, np.arange(heads)] = blocks
    return joined.reshape(heads * a, heads * b)
