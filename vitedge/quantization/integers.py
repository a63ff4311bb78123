"""Integers: schemes, grids of representable values, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=np.floating[Any])


@dataclass(frozen=True)
class Scheme:
    """The integer types that a runtime's int8 kernels accept."""

    activation: Literal["uint8", "int8"]
    symmetric: bool  # the zero point is the middle: 0 for int8, 128 for uint8
    wide_sums: bool = True  # False: the products of two neighbours are added in saturating 16 bits (x86 without VNNI)
    plain_norms: bool = False  # the runtime rounds inside a LayerNormalization that has neither scale nor bias


class Grid(NamedTuple):
    """The 256 representable values scale · (q - zero_point) of one tensor."""

    scale: np.float32
    zero_point: int
    type: Literal["uint8", "int8"]

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return integers of ``type``, saturated, any shape."""
        limits = np.iinfo(self.type)
        levels = np.rint(values / self.scale) + self.zero_point
        return np.asarray(np.clip(levels, limits.min, limits.max).astype(self.type))

    def fake(self, values: NDArray[F]) -> NDArray[F]:
        """Return the nearest representable values, in the dtype of ``values``."""
        limits, scale = np.iinfo(self.type), values.dtype.type(self.scale)
        levels = np.asarray(values / scale)
        np.rint(levels, out=levels)
        np.maximum(levels, limits.min - self.zero_point, out=levels)
        np.minimum(levels, limits.max - self.zero_point, out=levels)
        levels *= scale
        return levels


def affine(low: float, high: float, scheme: Scheme) -> Grid:
    """Return the grid that covers [low, high] and zero; zero is always representable."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    limits = np.iinfo(scheme.activation)
    if scheme.symmetric:
        middle = 128 if scheme.activation == "uint8" else 0
        return Grid(_scale(max(-low, high) / 127), middle, scheme.activation)
    scale = _scale((high - low) / 255)
    zero_point = int(np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max))
    return Grid(scale, zero_point, scheme.activation)


def _scale(step: float) -> np.float32:
    """Return a step as float32; 1 where the tensor is zero everywhere."""
    scale: np.float32 = np.float32(step) if step > 1e-30 else np.float32(1.0)
    return scale


#: Largest sum of two weights whose products with u8 values are added in 16 bits: 255 · 128 < 2¹⁵ ≤ 255 · 129.
PAIR = 128

_LEAST_SCALE = 1e-30  # keeps the scale of an all-zero channel a normal number


@dataclass(frozen=True)
class Codes:
    """The integers that the weights [K, C_out] of a layer may have, so that its kernel computes them exactly.

    x86 without VNNI multiplies u8 by s8 with ``vpmaddubsw``, which adds the products of two neighbours in saturating
    16 bits. Weights of 7 bits never saturate there; nor do weights of 8 bits, as long as no two neighbours add up to
    more than ±128. Neighbours are the input channels 0 and 1, 2 and 3, and so on, at one tap: kernels keep four of them
    together (ONNX Runtime's and OpenVINO's do; measured pair by pair).
    """

    largest: int  # magnitude
    partner: NDArray[np.int64] | None = None  # [K]: each row's neighbour; None: none can saturate

    @classmethod
    def of(cls, scheme: Scheme, channels: int, taps: int = 1) -> Codes:
        """Make codes for rows by channel, then by tap. Kernels lay out an odd number of channels differently."""
        if scheme.wide_sums:
            return cls(127)
        if channels % 2:
            return cls(63)
        channel, tap = np.divmod(np.arange(channels * taps), taps)
        return cls(127, (channel ^ 1) * taps + tap)

    def scale(self, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the least scale [C_out] at which all weights [K, C_out] can be represented."""
        step = np.abs(matrix).max(axis=0) / self.largest
        if self.partner is not None:
            step = np.maximum(step, np.abs(matrix + matrix[self.partner]).max(axis=0) / PAIR)
        return np.asarray(np.maximum(step, _LEAST_SCALE), np.float32)

    def round(self, matrix: NDArray[np.floating[Any]], scale: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return the nearest integers of weights [K, C_out] with scales [C_out]; of neighbours, the nearest pair."""
        levels = np.clip(np.rint(matrix / scale), -self.largest, self.largest)
        if self.partner is not None:
            total = levels + levels[self.partner]
            over = np.nonzero(np.abs(total) > PAIR)  # of few, and of both neighbours
            excess = total[over] - np.copysign(PAIR, total[over])
            half = np.trunc(excess / 2)
            levels[over] -= np.where(over[0] < self.partner[over[0]], excess - half, half)
        return np.asarray(levels.astype(np.int8))

    def limits(self, row: int, rounded: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the least and largest integers [C_out] of a row, given the rounded ones ([K, C_out]; 0: not yet)."""
        beside = np.zeros(rounded.shape[1], np.int64)
        if self.partner is not None:
            beside = rounded[self.partner[row]].astype(np.int64)
        return np.maximum(-self.largest, -PAIR - beside), np.minimum(self.largest, PAIR - beside)
