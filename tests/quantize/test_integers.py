"""Grids and weights against the definition, value by value."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.quantize.references import dequantized, quantized
from vitedge.quantize.integers import Scheme, affine, round_weights, weight_limit

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


@given(arrays(np.float64, (5, 3), elements=st.floats(-10, 10, allow_subnormal=False)), st.sampled_from([7, 8]))
@settings(deadline=None)
def test_weights_keep_to_their_bits(matrix: np.ndarray, bits: int) -> None:
    limit = weight_limit(bits)
    assert limit == {7: 63, 8: 127}[bits]
    scale = np.maximum(np.abs(matrix).max(axis=0) / limit, 1e-6).astype(np.float32)
    rounded = round_weights(matrix, scale, bits)
    assert np.abs(rounded.astype(int)).max() <= limit
    assert (np.abs(matrix - rounded * scale.astype(np.float64)) <= 0.501 * scale).all()
