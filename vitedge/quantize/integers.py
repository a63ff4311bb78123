"""The integers themselves: schemes, grids of representable values, rounding onto them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=np.floating[Any])


@dataclass(frozen=True)
class Scheme:
    """What a runtime's int8 kernels take."""

    activation: Literal["uint8", "int8"]
    symmetric: bool  # the zero point is the middle: 0 for int8, 128 for uint8
    weight_bits: Literal[7, 8] = 8  # 7 where two products are added in 16 bits (x86 without VNNI)


class Grid(NamedTuple):
    """The 256 representable values scale · (q - zero_point) of one tensor."""

    scale: np.float32
    zero_point: int
    type: Literal["uint8", "int8"]

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """Integers of ``type``, saturated, any shape."""
        limits = np.iinfo(self.type)
        levels = np.rint(values / self.scale) + self.zero_point
        return np.asarray(np.clip(levels, limits.min, limits.max).astype(self.type))

    def fake(self, values: NDArray[F]) -> NDArray[F]:
        """The nearest representable values, in the dtype of ``values``."""
        limits = np.iinfo(self.type)
        levels = np.rint(values / values.dtype.type(self.scale))
        clipped = np.clip(levels, limits.min - self.zero_point, limits.max - self.zero_point)
        return np.asarray(clipped * values.dtype.type(self.scale))


def affine(low: float, high: float, scheme: Scheme) -> Grid:
    """The grid that covers [low, high] and zero; zero is always representable."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    limits = np.iinfo(scheme.activation)
    if scheme.symmetric:
        middle = 128 if scheme.activation == "uint8" else 0
        return Grid(_scale(max(-low, high) / 127), middle, scheme.activation)
    scale = _scale((high - low) / 255)
    zero_point = int(np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max))
    return Grid(scale, zero_point, scheme.activation)


def _scale(step: float) -> np.float32:
    """A step as float32; 1 where the tensor is zero everywhere."""
    scale: np.float32 = np.float32(step) if step > 1e-30 else np.float32(1.0)
    return scale


#: Instruction sets whose 8-bit products are summed in 32 bits.
WIDE_SUMS = ("avx_vnni", "avx512_vnni", "neon", "dotprod", "i8mm")


def weight_bits(isa: str) -> Literal[7, 8]:
    """Bits of a weight on an instruction set: 7 where two products are added in 16 bits and would saturate."""
    return 8 if isa in WIDE_SUMS else 7


def weight_limit(bits: Literal[7, 8]) -> int:
    """Largest magnitude of a signed weight: 127 or 63."""
    return 127 if bits == 8 else 63


def round_weights(matrix: NDArray[np.float64], scale: NDArray[np.float32], bits: Literal[7, 8]) -> NDArray[np.int8]:
    """The nearest integers of weights [K, C_out] with scales [C_out]."""
    limit = weight_limit(bits)
    return np.clip(np.rint(matrix / scale), -limit, limit).astype(np.int8)
