"""Orders, compensation and low ranks against least squares, brute force and definitions in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitedge.shrinking import algebra
from vitedge.shrinking.algebra import (
    RIDGE,
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

Float64 = NDArray[np.float64]


def correlated(rows: int, columns: int, seed: int, spread: float = 1.0) -> Float64:
    """Centred rows [n, K] whose columns have much in common."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, columns)) @ random.standard_normal((columns, columns))
    x *= np.exp(spread * random.standard_normal(columns))
    return np.asarray(x - x.mean(axis=0))


def ridge_solution(x: Float64, y: Float64, about: Float64, kept: NDArray[np.intp], ridge: float) -> Float64:
    """Weights of the kept columns by stacked least squares: rows of data, and rows that hold the weights back."""
    data = np.concatenate([x[:, kept] / np.sqrt(len(x)), np.sqrt(ridge) * np.eye(x.shape[1])[:, kept]])
    wanted = np.concatenate([y / np.sqrt(len(x)), np.sqrt(ridge) * about])
    return np.asarray(np.linalg.lstsq(data, wanted, rcond=None)[0])


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_compensation_is_ridge_least_squares(seed: int, units: int, rows: int, outputs: int) -> None:
    x = correlated(60, units * rows, seed)
    matrix = np.random.default_rng(seed).standard_normal((units * rows, outputs))
    covariance = x.T @ x / len(x)
    ridge = damped(covariance)
    order = removal_order(ridge, matrix, rows)
    assert sorted(order.tolist()) == list(range(units))
    removal = Removal.of(ridge, matrix, order, rows)
    about = RIDGE * float(np.trace(covariance)) / len(covariance)
    for width in range(1, units + 1):
        kept = (removal.kept(width)[:, None] * rows + np.arange(rows)).ravel()
        new = removal.matrix(width)
        assert np.allclose(new, ridge_solution(x, x @ matrix, matrix, kept, about), rtol=1e-6, atol=1e-8)
        change = -matrix.copy()
        change[kept] += new
        assert np.isclose(removal.errors()[width], np.sum(change * (ridge @ change)), rtol=1e-7, atol=1e-12)
    assert np.isclose(removal.errors()[0], np.sum(matrix * (ridge @ matrix)))
    assert np.allclose(removal.matrix(units), matrix, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 2), st.sampled_from([1, 3, 32]))
@settings(max_examples=40, deadline=None)
def test_one_at_a_time_the_cheapest_goes(seed: int, units: int, rows: int, at_once: int) -> None:
    """As if everything were solved anew without each of those that are left, whenever the inverse is down-dated."""
    x = correlated(40, units * rows, seed)
    matrix = np.random.default_rng(seed).standard_normal((units * rows, 3))
    ridge = damped(x.T @ x / len(x))
    left, gone = list(range(units)), []
    while left:
        errors = {}
        for unit in left:
            kept = [each for each in left if each != unit]
            order = np.array([*kept, unit, *gone[::-1]])
            errors[unit] = Removal.of(ridge, matrix, order, rows).errors()[len(kept)]
        gone.append(min(errors, key=lambda unit: errors[unit]))
        left.remove(gone[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "_AT_ONCE", at_once)
        assert removal_order(ridge, matrix, rows)[::-1].tolist() == gone


def test_the_order_of_those_that_stay_is_not_needed() -> None:
    x = correlated(200, 40, 1)
    matrix = np.random.default_rng(1).standard_normal((40, 5))
    ridge = damped(x.T @ x / len(x))
    whole, part = removal_order(ridge, matrix), removal_order(ridge, matrix, keep=16)
    assert set(whole[:16]) == set(part[:16]) and whole[16:].tolist() == part[16:].tolist()


def test_layers_that_lose_the_same_units_are_weighed_together() -> None:
    x = [correlated(50, 6, seed) for seed in (1, 2)]
    ridge = damped(np.stack([each.T @ each / 50 for each in x]))
    matrix = np.random.default_rng(3).standard_normal((2, 6, 1))
    order = removal_order(ridge, matrix)
    errors = {
        kept: sum(
            float(Removal.of(ridge[i], matrix[i], np.array([*kept, *{*range(6)} - {*kept}])).errors()[5])
            for i in (0, 1)
        )
        for kept in itertools.combinations(range(6), 5)
    }
    assert set(order[:5].tolist()) == set(min(errors, key=lambda kept: errors[kept]))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_another_target_is_met_by_all_inputs(seed: int) -> None:
    x, random = correlated(80, 6, seed), np.random.default_rng(seed)
    matrix, y = random.standard_normal((6, 3)), random.standard_normal((80, 3))
    covariance = x.T @ x / 80
    new = targeted(damped(covariance), covariance, matrix, x.T @ y / 80)
    about = RIDGE * float(np.trace(covariance)) / 6
    assert np.allclose(new, ridge_solution(x, y, matrix, np.arange(6), about), rtol=1e-6, atol=1e-8)
    same = targeted(damped(covariance), covariance, matrix, covariance @ matrix)
    assert np.allclose(same, matrix, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["dead", "constant", "twins", "few", "nothing"])
def test_hostile_inputs(case: str) -> None:
    """Units that are always zero, always the same, copies of each other, more of them than rows, or all constant."""
    x = correlated(6 if case == "few" else 100, 16, 5, spread=0.0)
    if case == "dead":
        x[:, ::2] = 0
    elif case == "twins":
        x[:, ::2] = x[:, 1::2]
    elif case == "nothing":
        x[:] = 0
    elif case == "constant":
        x[:, 3] = 7.0
    centred = x - x.mean(axis=0)
    matrix = np.random.default_rng(0).standard_normal((16, 4))
    ridge = damped(centred.T @ centred / len(x))
    removal = Removal.of(ridge, matrix, removal_order(ridge, matrix))
    errors = removal.errors()
    assert np.isfinite(errors).all() and (np.diff(errors) <= 1e-12).all()
    assert all(np.isfinite(removal.matrix(width)).all() for width in (1, 8, 16))
    spread = np.sum(matrix * (ridge @ matrix))
    if case in ("dead", "twins"):  # half of them do: the rest is theirs but for what the ridge holds back
        assert errors[8] <= 0.02 * spread
        kept = removal.kept(8)
        assert case == "twins" or not set(kept.tolist()) & set(range(0, 16, 2))
        assert np.allclose(
            centred[:, kept] @ removal.matrix(8), centred @ matrix, atol=0.01 * np.abs(centred @ matrix).max()
        )
    if case == "constant":  # whether it's there changes nothing but the bias
        others = np.delete(np.arange(16), 3)
        assert np.allclose(Removal.of(ridge, matrix, np.array([*others, 3])).matrix(15), matrix[others])


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_scores_are_kept_by_the_best_of_their_rank(seed: int, rank: int) -> None:
    """The error is that of the sum of products over all queries and keys, and no other map of this rank has less."""
    random = np.random.default_rng(seed)
    q = random.standard_normal((30, 6)) @ random.standard_normal((6, 6)) + random.standard_normal(6)
    k = correlated(25, 6, seed + 1)
    queries, keys = (q.T @ q / 30)[None], (k.T @ k / 25)[None]
    query_maps, key_maps, values = low_rank_scores(queries, keys)
    scores = q @ k.T
    narrow = (q @ query_maps[0, :, :rank]) @ (k @ key_maps[0, :, :rank]).T
    error = float(np.square(scores - narrow).mean())
    assert np.isclose(error, np.square(values[0, rank:]).sum(), rtol=1e-6, atol=1e-9 * np.square(scores).mean())
    best = np.linalg.svd(scores, compute_uv=False)[rank:]
    assert np.isclose(error, np.square(best).sum() / scores.size, rtol=1e-6, atol=1e-9 * np.square(scores).mean())


def test_scores_of_dependent_channels_keep_their_whole_rank() -> None:
    random = np.random.default_rng(2)
    q = random.standard_normal((40, 3)) @ random.standard_normal((3, 8))
    k = random.standard_normal((40, 8))
    maps = low_rank_scores((q.T @ q / 40)[None], (k.T @ k / 40)[None])
    assert np.allclose((q @ maps[0][0, :, :3]) @ (k @ maps[1][0, :, :3]).T, q @ k.T, atol=1e-6 * np.abs(q @ k.T).max())
    assert np.isfinite(maps[0]).all() and np.isfinite(maps[1]).all()


def test_parts_of_rotary_scores_vary_as_they_do() -> None:
    random = np.random.default_rng(4)
    q, k = random.standard_normal((2, 50, 2, 8))  # [tokens, heads, channels]
    moments = [np.einsum("thd,the->hde", each, each) / 50 for each in (q, k)]
    parts = np.einsum("thap,shap->htsp", q.reshape(50, 2, 2, 4), k.reshape(50, 2, 2, 4))
    expected = np.einsum("htsp,htsr->hpr", parts, parts) / 50**2
    assert np.allclose(rotary_pairs(*moments), expected)


def test_bases_of_values_hold_most_of_what_a_head_adds() -> None:
    """Alone, with the best projection behind, r of them do as well as the best r channels: reduced-rank regression."""
    context, random = correlated(300, 12, 7), np.random.default_rng(7)
    matrix = random.standard_normal((12, 5))
    covariance = context.T @ context / 300
    bases = value_bases(covariance, matrix, 2)
    assert np.allclose(bases.swapaxes(1, 2) @ bases, np.eye(6), atol=1e-9)
    for head in (0, 1):
        own = context[:, head * 6 : head * 6 + 6]
        target = own @ matrix[head * 6 : head * 6 + 6]
        for rank in (1, 3, 5):
            narrow = own @ bases[head, :, :rank]
            fitted = narrow @ np.linalg.lstsq(narrow, target, rcond=None)[0]
            best = np.linalg.svd(target, compute_uv=False)[rank:]
            assert np.isclose(np.square(target - fitted).sum(), np.square(best).sum(), rtol=1e-6, atol=1e-6)
    whole = block_diagonal(bases)
    assert np.allclose(whole @ whole.T, np.eye(12), atol=1e-9)


@given(st.integers(1, 80))
def test_mixing_is_a_rotation_without_dominant_elements(size: int) -> None:
    matrix = mixing(size)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert np.square(matrix).max() <= 2 / size + 1e-12
    spreads = np.square(matrix.T @ np.diag(0.7 ** np.arange(size))).sum(axis=1)  # of the mixed channels
    assert size == 1 or spreads.max() / spreads.min() < 0.7 ** (2 - 2 * size)
