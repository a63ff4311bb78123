"""Grids and weights against the definition, value by value."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.quantization.references import dequantized, quantized
from vitedge.quantization.integers import PAIR, Codes, Scheme, affine

RANGES = st.tuples(
    st.floats(-1e4, 1e4, width=32, allow_subnormal=False), st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
).map(sorted)
SCHEMES = st.sampled_from([Scheme("uint8", False), Scheme("uint8", True), Scheme("int8", False), Scheme("int8", True)])
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@given(RANGES, SCHEMES)
@settings(deadline=None)
def test_a_grid_covers_its_range_and_zero(ends: list[float], scheme: Scheme) -> None:
    low, high = ends
    grid = affine(low, high, scheme)
    assert grid.scale > 0 and grid.scale.dtype == np.float32
    assert grid.fake(np.zeros(1)) == 0
    if scheme.symmetric:
        assert grid.zero_point == (128 if scheme.activation == "uint8" else 0)
    for end in (low, high):  # half a step for rounding the zero point, half for rounding the value
        assert abs(grid.fake(np.float64([end]))[0] - end) <= 1.01 * grid.scale


@given(RANGES, SCHEMES, arrays(np.float64, 8, elements=st.floats(-3e4, 3e4, allow_subnormal=False)))
@settings(deadline=None)
def test_rounding_is_onnx_rounding(ends: list[float], scheme: Scheme, values: np.ndarray) -> None:
    grid = affine(*ends, scheme)
    limits = LIMITS[scheme.activation]
    expected = quantized(values, float(grid.scale), grid.zero_point, *limits)
    assert np.array_equal(grid.quantize(values), expected)
    assert grid.quantize(values).dtype == scheme.activation
    assert np.allclose(grid.fake(values), dequantized(values, float(grid.scale), grid.zero_point, *limits), rtol=1e-12)


def test_the_whole_of_pixels_is_exact() -> None:
    grid = affine(0, 255, Scheme("uint8", False))
    pixels = np.arange(256.0)
    assert (grid.scale, grid.zero_point) == (1, 0)
    assert np.array_equal(grid.fake(pixels), pixels)


def test_an_empty_range_has_a_grid() -> None:
    assert affine(0.0, 0.0, Scheme("uint8", False)).scale == 1


NARROW = Scheme("uint8", False, wide_sums=False)


@given(arrays(np.float64, (12, 3), elements=st.floats(-10, 10, allow_subnormal=False)), st.sampled_from([1, 2, 3, 4]))
@settings(deadline=None)
def test_weights_keep_to_what_a_kernel_computes_exactly(matrix: np.ndarray, taps: int) -> None:
    channels = 12 // taps
    for scheme in (NARROW, Scheme("int8", True)):
        codes = Codes.of(scheme, channels, taps)
        assert codes.largest == (63 if channels % 2 and scheme is NARROW else 127)
        scale = np.maximum(codes.scale(matrix), np.float32(1e-6))
        rounded = codes.round(matrix, scale).astype(int)
        assert np.abs(rounded).max() <= codes.largest
        if scheme is NARROW and not channels % 2:
            rows = rounded.reshape(channels, taps, -1)
            assert np.abs(rows[0::2] + rows[1::2]).max() <= PAIR
            worst = 255 * np.maximum(rounded, 0).reshape(channels // 2, 2, taps, -1).sum(axis=1)
            assert worst.max(initial=0) < 2**15
        assert (np.abs(matrix - rounded * scale.astype(np.float64)) <= 1.01 * scale).all()


@given(arrays(np.int64, (2, 1), elements=st.integers(-300, 300)))
@settings(deadline=None)
def test_a_pair_that_would_saturate_becomes_the_nearest_that_does_not(pair: np.ndarray) -> None:
    codes = Codes.of(NARROW, 2)
    found = codes.round(pair.astype(float), np.ones(1, np.float32)).astype(int)
    clipped = np.clip(pair, -127, 127)
    grid = np.arange(-127, 128)
    allowed = np.abs(grid[:, None] + grid[None]) <= PAIR
    distance = (grid[:, None] - clipped[0, 0]) ** 2 + (grid[None] - clipped[1, 0]) ** 2
    assert np.abs(found.sum()) <= PAIR
    assert ((found - clipped) ** 2).sum() == distance[allowed].min()


def test_a_row_is_limited_by_its_neighbour_at_the_same_tap() -> None:
    codes = Codes.of(NARROW, channels=4, taps=2)
    rounded = np.zeros((8, 2), np.int8)
    rounded[5] = (100, -127)  # channel 2, tap 1; its neighbour is channel 3 at that tap
    low, high = codes.limits(7, rounded)
    assert low.tolist() == [-127, -1] and high.tolist() == [28, 127]
    for row in (0, 4, 6):
        low, high = codes.limits(row, rounded)
        assert low.tolist() == [-127, -127] and high.tolist() == [127, 127]


def test_eight_bits_are_finer_than_seven() -> None:
    matrix = np.random.default_rng(0).standard_normal((192, 64))
    assert (Codes.of(NARROW, 192).scale(matrix) / Codes(63).scale(matrix)).mean() < 0.7
    assert (Codes.of(NARROW, 192).scale(np.ones((192, 1))) <= Codes(63).scale(np.ones((192, 1)))).all()
